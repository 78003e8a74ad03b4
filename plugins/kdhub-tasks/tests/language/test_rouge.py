"""ROUGE-L."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st
from kdhub_tasks.language.rouge import NovelTexts, common, rouge_l, words


def test_by_hand():
    a, b = words("police killed the gunman"), words("Police kill the gunman.")
    assert a == ["police", "killed", "the", "gunman"] and common(a, b) == 3
    assert rouge_l(a, b) == 0.75  # Lin 2004, section 3.1
    assert rouge_l(words("the gunman kill police"), a) == 0.5
    assert rouge_l([], a) == rouge_l(a, []) == 0
    assert words("Größe_2: 日本") == ["größe", "2", "日", "本"]


def test_scripts_without_spaces_are_compared_by_characters():
    assert words("某人Kate不吃早饭,2天!") == ["某", "人", "kate", "不", "吃", "早", "饭", "2", "天"]
    assert words("カレーを食べる") == list("カレーを食べる") and words("서울 날씨") == ["서울", "날씨"]
    assert rouge_l(words("某人不吃早饭"), words("某人不吃晚饭")) == 5 / 6
    assert rouge_l(words("某人不吃早饭"), words("某人没去上班")) == 2 / 6
    novel = NovelTexts(0.7)
    assert novel.add("某人不吃早饭") and not novel.add("某人不吃晚饭") and novel.add("某人没去上班")


@given(st.lists(st.sampled_from("abc"), max_size=7), st.lists(st.sampled_from("abcd"), max_size=7))
def test_the_longest_common_subsequence(a, b):
    def parts(x):
        return {p for n in range(len(x) + 1) for p in combinations(x, n)}

    assert common(a, b) == common(b, a) == max(map(len, parts(a) & parts(b)))


def test_what_is_too_like_a_kept_text_is_not_kept():
    novel = NovelTexts(0.7)
    assert novel.add("write a poem about the sea")
    assert not novel.add("Write a poem about the sea!")
    assert not novel.add("write a poem about the moon")  # 5 of 6 words: 0.83
    assert novel.add("write a song about our moon")  # 3 of 6: 0.5
    assert novel.add("sea the about poem a write")  # the same words in another order: 1 of 6
    assert NovelTexts(0.0).add("x")  # the first always
