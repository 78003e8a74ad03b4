"""Next items: how logs become rows, how items are ranked, what rationales may say, and runs from end to end."""

from __future__ import annotations

import itertools
import json
import logging
import re

import numpy as np
import pytest
import torch
from kdhub_knowledge.items import metrics
from kdhub_knowledge.items.catalogue import Catalogue, names, plain_title, shown
from kdhub_knowledge.items.log import Taken, leave_last
from kdhub_knowledge.items.metrics import Ranks
from kdhub_knowledge.items.network import selection
from kdhub_knowledge.items.task import prepare_for, rank, ranked
from kdhub_knowledge.methods.pulse import Pulse, alignment_losses, item_losses
from kdhub_tasks.language.openai import OpenAI

import kdhub
from kdhub.errors import CompatibilityError, DataError, UsageError
from kdhub.method import Progress
from kdhub.rows import Signals
from kdhub.testing.server import serving

TASK = "sequential-recommendation"
SMALL = {"users": 200, "items": 120, "genres": 8, "taken": 10}


def ranks(*values: int, of: int = 20) -> Ranks:
    n = len(values)
    return Ranks(np.array(values), np.full(n, of), np.zeros(n, bool))


# -- numbers worked out by hand -------------------------------------------------------------------------------------


def test_ranks_are_worth_what_they_should():
    found = ranks(1, 3, 12)
    assert metrics.hr_5(found) == pytest.approx(0.666667, abs=1e-6)
    assert metrics.ndcg_5(found) == pytest.approx(0.5)
    assert metrics.mrr(found) == pytest.approx(0.472222, abs=1e-6)
    assert (metrics.hr_1(found), metrics.hr_10(found), metrics.candidates(found)) == (1 / 3, 2 / 3, 20)


@pytest.mark.parametrize("place, of, drawn", [(1, 6, 3), (3, 6, 3), (6, 6, 2), (4, 5, 9)])
def test_among_drawn_items_it_is_the_mean_over_all_draws(place, of, drawn):
    found = Ranks(np.array([place]), np.array([of]), np.zeros(1, bool), negatives=drawn)
    others = [n for n in range(1, of + 1) if n != place]
    each = [1 + sum(n < place for n in some) for some in itertools.combinations(others, min(drawn, len(others)))]
    assert metrics.mrr(found) == pytest.approx(np.mean([1 / r for r in each]))
    assert metrics.hr_1(found) == pytest.approx(np.mean([r == 1 for r in each]))
    assert metrics.candidates(found) == min(drawn, of - 1) + 1


def test_alignment_by_hand():
    u, r = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[0.8, 0.6], [0.6, 0.8]])
    apart = torch.arange(2)
    torch.testing.assert_close(alignment_losses(u, r, apart, 0.1), torch.full((2,), 0.126928), atol=1e-6, rtol=0)
    equal = alignment_losses(torch.ones(4, 3), torch.ones(4, 3), torch.arange(4), 0.1)
    torch.testing.assert_close(equal, torch.full((4,), float(np.log(4))))
    same = alignment_losses(u, r, torch.zeros(2), 0.1)
    assert (same == 0).all(), "users with the same next item are no negatives of each other"


def test_alignment_does_not_depend_on_roles_order_or_rotation():
    draw = torch.Generator().manual_seed(0)
    u, r = torch.randn(2, 5, 3, generator=draw)
    labels, turn = torch.tensor([0, 1, 1, 2, 3]), torch.linalg.qr(torch.randn(3, 3, generator=draw))[0]
    wanted, order = alignment_losses(u, r, labels, 0.5), torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(alignment_losses(r, u, labels, 0.5), wanted)
    torch.testing.assert_close(alignment_losses(u[order], r[order], labels[order], 0.5), wanted[order])
    torch.testing.assert_close(alignment_losses(u @ turn, r @ turn, labels, 0.5), wanted)
    assert wanted[1] < alignment_losses(u, r, torch.arange(5), 0.5)[1], "a negative less is a smaller loss"


def test_the_next_item_is_told_from_the_columns_alone():
    q, v = torch.randn(2, 3, generator=torch.Generator().manual_seed(1)), torch.eye(3).repeat(2, 1)
    near = q @ v.T / 0.1
    for columns in (None, torch.tensor([1, 3, 4])):
        of = near if columns is None else near[:, columns]
        wanted = of.logsumexp(1) - torch.stack([near[0, 4], near[1, 1]])
        torch.testing.assert_close(item_losses(q, v, torch.tensor([4, 1]), columns, 0.1), wanted)


def test_negatives_are_as_asked_and_rows_without_a_rationale_count_in_the_first_term_alone():
    labels, draw = torch.tensor([3, 1, 3, 0]), torch.Generator()
    unit = torch.nn.functional.normalize(torch.randn(4, 7, 2, generator=draw.manual_seed(2)), dim=-1)
    given = Signals(user=unit[:, 0], rationale=unit[:, 1:4], item=unit[0])
    written = torch.tensor([[True, True, False], [False] * 3, [False, True, True], [True] * 3])
    for negatives, columns in (("in-batch", {0, 1, 3}), ("sampled:40", set(range(7))), ("full", None)):
        method = Pulse(Pulse.Options(negatives=negatives, random_epochs=1.0))
        method.items = 7
        batch = method.prepare_batch({"labels": labels, "written": written}, draw)
        found = method._columns(batch)
        assert (found if found is None else set(found.tolist())) == columns
        assert (batch["written"][torch.arange(4), batch["drawn"]] == written.any(1)).all(), "what is drawn is written"
    terms = method.objective(given, Signals(), batch, Progress(0, 10, 0.0))
    some, r = [0, 2, 3], given.rationale[torch.arange(4), batch["drawn"]]
    wanted = [
        item_losses(given.user, given.item, labels, None, 0.1).mean(),
        item_losses(r[some], given.item, labels[some], None, 0.1).mean(),
        0.5 * alignment_losses(given.user[some], r[some], labels[some], 0.1).mean(),
    ]
    torch.testing.assert_close(list(terms.values()), wanted)
    later = method.objective(given, Signals(), batch, Progress(9, 10, 2.0))
    best = selection({**given}, written, labels).argmax(1)
    torch.testing.assert_close(
        later["rationale-item"],
        item_losses(given.rationale[some, best[some]], given.item, labels[some], None, 0.1).mean(),
    )
    silent = method.objective(
        Signals(user=given.user, item=given.item), Signals(), {"labels": labels}, Progress(0, 1, 0.0)
    )
    assert silent["user-item"] == terms["user-item"] and silent["rationale-item"] == silent["alignment"] == 0


def test_selection_takes_the_highest_score_and_of_equal_ones_the_first():
    given = {
        "user": torch.tensor([[1.0, 0], [1, 0]]), "item": torch.tensor([[1.0, 0], [0, 1]]),
        "rationale": torch.tensor([[[0.6, 0.8], [1, 0], [1, 0]], [[0.6, 0.8], [1, 0], [1, 0]]]),
    }  # fmt: skip
    written = torch.tensor([[True] * 3, [True, False, True]])
    assert selection(given, written).argmax(1).tolist() == [1, 2]
    assert selection(given, written, torch.tensor([1, 1])).argmax(1).tolist() == [0, 0], "0.6 + 0.8 is above 1 + 0"
    assert selection(given, written)[1, 1] == -np.inf


def test_equal_scores_are_ranked_in_the_order_of_items_and_what_was_taken_is_left_out():
    scores = np.array([[3.0, 1, 1, 1, 2], [3, 1, 1, 1, 2], [0, 0, 0, 0, 0]])
    examples = [{"history": [0], "label": 2}, {"history": [4, 0], "label": 1}, {"history": [1, 3], "label": 3}]
    found = rank(scores, examples)
    assert found.ranks.tolist() == [3, 1, 3] and found.candidates.tolist() == [4, 3, 4]
    assert found.tied.all(), "the third comes again, and is ranked among what was not taken"
    with pytest.raises(DataError, match="1 of 1 rows have no next item"):
        rank(scores[:1], [{"history": [0], "label": -1}])


# -- logs -----------------------------------------------------------------------------------------------------------


def log_of(rows, tmp_path, **options):
    file = tmp_path / "log.jsonl"
    file.write_text("".join(json.dumps(dict(zip(("user", "item", "time"), row))) + "\n" for row in rows))
    return kdhub.open_data({"source": f"interactions:{file}", "options": {"least": 4, **options}})


def test_the_last_items_are_held_out_and_what_decided_is_counted(tmp_path, caplog):
    rows = [("a", item, time) for item, time in zip("vwxyz", (1, 5, 3, 4, 2))]
    rows += [("b", item, time) for item, time in zip("vwxyzv", (1, 2, 3, 4, 4, 9))] + [("c", "v", 1)]
    with caplog.at_level(logging.INFO, "kdhub"):
        data = log_of(rows, tmp_path, rows_per_user=2)
        found = {s: [(r["user"], "".join(r["history"]), r["item"]) for r in data.split(s)] for s in data.splits[1:]}
    assert found["test"] == [("a", "vzxy", "w"), ("b", "vwxy", "z")]
    assert found["validation"] == [("a", "vzx", "y"), ("b", "vwx", "y")]
    assert found["train"] == [("a", "v", "z"), ("a", "vz", "x"), ("b", "v", "w"), ("b", "vw", "x")]
    said = caplog.text
    for text in ("1 users have fewer than 4 items", "1 rows take an item again", "1 users have equal times among the"):
        assert text in said
    assert "where times are equal by the row of the log" in said
    with pytest.raises(DataError, match="none of 1 users has 4 items or more"):
        log_of([("c", "v", 1)], tmp_path).split("train")
    with pytest.raises(UsageError, match=r"least must be at least 4.*\(least=3\)"):
        log_of(rows, tmp_path, least=3)


@pytest.mark.parametrize(
    "row, says", [(("a", "v", "soon"), "row 1: the time is 'soon'"), ((None, "v", "1"), "row 1: no user")]
)
def test_bad_lines_of_a_log_are_named(row, says, tmp_path):
    with pytest.raises(DataError, match=says):
        log_of([row, ("a", "w", "2")], tmp_path).split("train")


RATINGS = [(u, f, 5 if (u + f) % 5 else 1, 100 * u + f) for u in (1, 2, 3) for f in range(1, 9)]
FILMS = {
    1: ("Toy Story (1995)", ["Animation", "Comedy"]), 2: ("Postman, The (1994)", ["Drama"]), 3: ("Heat (1995)", []),
    4: ("Heat (1995)", []), 5: ("Amélie (2001)", ["Comedy"]), 6: ("Alien (1979)", ["Sci-Fi"]),
    7: ("Alien: Resurrection (1997)", ["Sci-Fi"]), 8: ("M (1931)", ["Crime"]),
}  # fmt: skip


@pytest.fixture(params=["100k", "1m", "latest", "mirror"])
def films(request, tmp_path):
    """A folder with few films and ratings as MovieLens has them."""
    from kdhub_knowledge.items.movielens import GENRES

    lines = [tuple(map(str, row)) for row in RATINGS]
    if request.param in ("100k", "mirror"):
        mark, head = ("\t", []) if request.param == "100k" else ("|", [("user", "item", "rating", "timestamp")])
        (tmp_path / "u.data").write_text("\n".join(mark.join(row) for row in head + lines))
        flags = [
            "|".join([str(n), title, "", "", "", *(str(int(g in tags)) for g in GENRES)])
            for n, (title, tags) in FILMS.items()
        ]
        (tmp_path / "u.item").write_bytes("\n".join(flags).encode("latin-1"))
    elif request.param == "1m":
        (tmp_path / "ratings.dat").write_text("\n".join("::".join(row) for row in lines))
        text = "\n".join(f"{n}::{title}::{'|'.join(tags)}" for n, (title, tags) in FILMS.items())
        (tmp_path / "movies.dat").write_bytes(text.encode("latin-1"))
    else:
        (tmp_path / "ratings.csv").write_text("\n".join(map(",".join, [("userId", "movieId", "rating", "t"), *lines])))
        rows = [f'{n},"{title}",{"|".join(tags) or "(no genres listed)"}' for n, (title, tags) in FILMS.items()]
        (tmp_path / "movies.csv").write_text("\n".join(["movieId,title,genres", *rows]))
    return tmp_path


def test_folders_of_movielens_are_read_alike(films):
    data = kdhub.open_data({"source": f"movielens:{films}", "options": {"least": 4}})
    known = Catalogue.of(data)
    assert known.items == ["1", "2", "3", "5", "6", "7", "8"], "films of one title are one"
    assert known.texts[0] == "Toy Story (1995). Animation, Comedy" and known.titles[3] == "Amélie (2001)"
    assert known.tags[2] == [] and known.tags[-1] == ["Crime"]
    for row in data.split("test"):
        user = int(row["user"])
        liked = [str({4: 3}.get(f, f)) for u, f, rating, _ in RATINGS if u == user and rating >= 4]
        assert [*row["history"], row["item"]] == list(dict.fromkeys(liked))


def test_a_line_that_cannot_be_read_and_a_folder_without_files_are_named(tmp_path):
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,5\n")
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n1,A,Drama\n")
    with pytest.raises(DataError, match=r"ratings.csv, line 2: 3 fields between ',', and more are needed"):
        kdhub.open_data(f"movielens:{tmp_path}").split("train")
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n1,,Drama\n")
    with pytest.raises(DataError, match=r"movies.csv, line 2: film 1 has no title"):
        kdhub.open_data(f"movielens:{tmp_path}").split("items")
    with pytest.raises(DataError, match=r"has none of the pairs u.data and u.item; ratings.dat"):
        kdhub.open_data(f"movielens:{tmp_path.parent}")


# -- popularity -----------------------------------------------------------------------------------------------------


def test_popularity_is_what_counting_gives_and_what_rectools_gives():
    """RecTools 0.19.0 (`PopularModel`, seen items taken out, items of equal counts in the order of the catalogue) gives
    these three numbers on the generated log of seed 0."""
    task, data = kdhub.open_task(TASK), kdhub.open_data("tastes")
    student = kdhub.open_student("popularity", task=TASK, facts=task.survey([(data, "train")]))
    known, rows, counts = Catalogue.of(data), list(data.split("test")), {}
    for row in data.split("train"):
        for item in [*row["history"], row["item"]]:
            counts[item] = counts.get(item, 0) + 1
    found = ranked(student.of(known), prepare_for(known.items)(rows))
    for row, place in zip(rows, found.ranks):
        order = sorted(set(known.items) - set(row["history"]), key=lambda i: (-counts.get(i, 0), known.at[i]))
        assert order.index(row["item"]) + 1 == place
    for name, wanted in (("hr_10", 0.07), ("ndcg_10", 0.030478505748909875), ("mrr", 0.03557703837471185)):
        assert getattr(metrics, name)(found) == pytest.approx(wanted, abs=1e-6)
    assert metrics.tied(found) == pytest.approx(0.825), "most counts are those of other items as well"


# -- what rationales may say ----------------------------------------------------------------------------------------


def test_titles_are_recognised_as_whole_words_and_not_inside_other_titles():
    assert plain_title("Postman, The (1994)") == plain_title("the postman") == "the postman"
    assert names("You will love THE postman!", "Postman, The (1994)") and not names("postmans", "Postman (1994)")
    assert not names("They liked Alien: Resurrection.", "Alien (1979)", ["Alien: Resurrection (1997)"])
    assert names("Alien: Resurrection, so Alien", "Alien (1979)", ["Alien: Resurrection (1997)"])
    assert names("他们想看红楼梦。", "红楼梦") and not names("anything", "")


def small(**options):
    return {"source": "rationales:tastes", "options": {"options": dict(SMALL, **options)}}


def test_no_prompt_and_no_rationale_names_the_held_out_title_of_any_user(tmp_path, monkeypatch, caplog):
    """A model that names the next title to every other prompt, and a history with another item of that title."""
    items = [{"item": f"i{n}", "title": f"Film {chr(65 + n)}"} for n in range(9)] + [
        {"item": "i9", "title": "Film A (1999)"}
    ]
    rows = [{"user": str(n), "history": [f"i{(n + k) % 9}" for k in range(1, 5)], "item": f"i{n}"} for n in range(9)]
    rows[0]["history"][1] = "i9"  # planted: the held-out title itself
    folder = tmp_path / "data"
    folder.mkdir()
    for name, given in (("items", items), ("train", rows), ("test", rows)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    title = {row["item"]: row["title"] for row in items}
    of = {"\n".join(f"- {title[i]}" for i in row["history"] if i != "i9"): title[row["item"]] for row in rows}
    prompts = []

    def said(path, body):
        prompt = body["messages"][-1]["content"]
        held, again = of[prompt.split("\n\n")[1]], prompt in prompts
        prompts.append(prompt)
        leak = "They want more of the same." if again else f"They want '{held.upper()}' next."
        return {"choices": [{"finish_reason": "stop", "message": {"content": leak}}], "usage": {}}

    monkeypatch.setenv("OPENAI_API_KEY", "test-key")
    monkeypatch.setattr(OpenAI, "backoff", 0.01)
    with serving(said) as server, caplog.at_level(logging.WARNING, "kdhub"):
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        options = {"teacher": "openai:toy", "n": 2}
        data = kdhub.open_data({"source": f"rationales:{folder}", "options": options})
        made = {split: list(data.split(split)) for split in ("train", "test")}
    assert len(prompts) == 2 * len(rows), "the same prompts are not asked for the second split"
    for prompt in prompts:
        shown_here = prompt.split("\n\n")[1]
        assert f"- {of[shown_here]}" not in prompt.splitlines()
    assert sum(len(row["rationales"]) for row in made["train"]) == len(rows), "every other reply named the title"
    for row in [*made["train"], *made["test"]]:
        assert not any(title[row["item"]].lower() in text.lower() for text in row["rationales"])
    assert "9 naming the held-out title" in caplog.text and "1 rows show no item of the held-out title" in caplog.text


def test_a_local_language_model_writes_and_limits_cut_no_items(tmp_path):
    teacher = kdhub.open_task("causal-lm").tiny_recipe(tmp_path)["teacher"]
    options = {"teacher": teacher, "n": 2, "limit": 3, "answers": {"max_new_tokens": 4}, "options": SMALL}
    data = kdhub.open_data({"source": "rationales:tastes", "options": options})
    rows = list(data.split("test"))
    assert len(rows) == 3 and len(data.split("items")) == 120 and all(len(row["rationales"]) <= 2 for row in rows)
    assert any(row["rationales"] for row in rows) and {row["noise"] for row in rows} == {-1}


def test_the_template_names_nobody_and_draws_the_same_again():
    data = kdhub.open_data(small())
    known = Catalogue.of(data)
    for split in ("train", "validation", "test"):
        for row in data.split(split):
            assert len(set(row["rationales"])) == 4 and 0 <= row["noise"] < 4
            held = known.titles[known.at[row["item"]]]
            assert not any(names(text, held) for text in row["rationales"])
            assert known.at[row["item"]] not in shown(row, known, 20)
            tags = {known.tags[known.at[item]][0] for item in row["history"]}
            for n, text in enumerate(row["rationales"]):
                said = {tag for tag in set(itertools.chain(*known.tags)) if re.search(rf"\b{tag}\b", text)}
                assert n == row["noise"] or said <= tags, "only the wrong one is about what nobody took"
    again = kdhub.open_data(small())
    assert [r["rationales"] for r in again.split("test")] == [r["rationales"] for r in data.split("test")]


# -- from end to end ------------------------------------------------------------------------------------------------


def recipe(**changes):
    return {
        "task": TASK, "method": "pulse", "student": {"source": "thought-space", "encoder": "mean", "dim": 16},
        "data": {"train": [small()], "validation": [small()]}, "evaluation": {"data": [small()], "cost": False},
        "options": {"negatives": "full", "precision": "float32", "epochs": 25, "batch_size": 50}, **changes,
    }  # fmt: skip


def scores(run, **variant):
    found = [m for m in run.report["measures"] if m["subject"] == "student" and m["variant"] == variant]
    return {m["metric"]: m["value"] for m in found}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return kdhub.distill(
        recipe(), out=tmp_path_factory.mktemp("pulse") / "run", set=["evaluation.options.negatives=20"]
    )


def test_rationales_are_chosen_losses_fall_and_popularity_is_beaten(trained, tmp_path):
    used = {(d["use"], d["split"]): d["rows"] for d in trained.provenance["data"]["use"]}
    assert used["items", "items"] == 120, "the items are among what the run used"
    lines = [line for line in trained.metrics() if "terms" in line]
    for name, first in lines[0]["terms"].items():
        assert lines[-1]["terms"][name] < 2 / 3 * first, f"{name} does not fall by a third"
    full, drawn = scores(trained), scores(trained, negatives=20)
    assert full["noise-chosen"] < 0.05 and full["candidates"] == 120 - 9 and drawn["candidates"] == 21
    assert drawn["hr@10"] > full["hr@10"], "among 20 others it is another number, and the report says which"
    popular = kdhub.distill(recipe(method="as-is", student="popularity", options={}), out=tmp_path / "popular")
    student = kdhub.load(trained.student_folder)
    chosen = [line for line in trained.metrics() if "mix" in line][0]
    assert student.config["mix"] == chosen["mix"] and chosen["validation"][str(chosen["mix"])] == max(
        chosen["validation"].values()
    )
    known = Catalogue.of(kdhub.open_data(small()))
    examples = prepare_for(known.items)(list(kdhub.open_data(small()).split("test")))
    assert metrics.hr_10(ranked(student, examples)) == pytest.approx(full["hr@10"])
    found = {}
    for mix, nearest in ((0.0, True), (0.5, True), (0.5, False)):
        student.set(mix=mix, nearest=nearest)
        found[mix, nearest] = metrics.hr_10(ranked(student, examples))
    assert found[0.0, True] > 3 * scores(popular)["hr@10"]
    assert found[0.5, True] > found[0.5, False] + 0.02, "the chosen rationale ranks better than one of random order"
    best = student.recommend(["films-1", "films-2"], 5)
    assert len(best) == 5 and not {"films-1", "films-2"} & set(best)
    with pytest.raises(UsageError, match="'films-999' is not one of the student's 120 items"):
        student.recommend(["films-999"])


def test_items_of_another_domain_are_ranked_by_their_texts(trained):
    """Books have other titles and ids, and the genres of films: chance is .09."""
    books = kdhub.open_data(small(domain="books"))
    task, student = kdhub.open_task(TASK), kdhub.load(trained.student_folder)
    known = Catalogue.of(books)
    moved = student.of(known)
    examples = prepare_for(known.items)(list(books.split("test")))
    assert metrics.hr_10(ranked(moved, examples)) > 0.2
    alone = kdhub.open_student(
        {"source": "thought-space", "items": "id", "dim": 4},
        task=TASK, facts=task.survey([(kdhub.open_data(small()), "train")]),
    )  # fmt: skip
    found = ranked(alone.of(known), examples)
    assert found.tied.all(), "ids alone know nothing of new items, and the report says that their order decided"


def test_refined_rationales_fit_better_and_leak_nothing(trained):
    refined = {"student": f"path:{trained.student_folder}", **small()["options"], "depth": 1}
    refined["options"] = {"options": refined.pop("options")}
    data, before = (
        kdhub.open_data({"source": "refined:rationales:tastes", "options": refined}),
        kdhub.open_data(small()),
    )
    student, known = kdhub.load(trained.student_folder), Catalogue.of(before)
    best = {}
    for which, of in (("before", before), ("refined", data)):
        examples = prepare_for(known.items)(list(of.split("train")))
        best[which] = np.array([s.max() for s in student.selection(examples, with_target=True)])
    assert (best["refined"] >= best["before"] - 1e-5).all() and best["refined"].mean() > best["before"].mean() + 0.01
    for row in data.split("train"):
        assert 1 <= len(row["rationales"]) <= 2
        assert not any(names(text, known.titles[known.at[row["item"]]]) for text in row["rationales"])
    with pytest.raises(UsageError, match=r"branch 1 to 3 \(depth=2, beam=2, branch=4\)"):
        kdhub.open_data({"source": "refined:tastes", "options": {"branch": 4}})


def test_a_language_model_is_tuned_on_the_chosen_rationale_and_the_next_title(trained):
    options = {"student": f"path:{trained.student_folder}", "options": small()["options"]}
    rows = list(kdhub.open_data({"source": "recommendations:rationales:tastes", "options": options}).split("train"))
    of = list(kdhub.open_data(small()).split("train"))
    known, wrong = Catalogue.of(kdhub.open_data(small())), 0
    for row, made in zip(of, rows):
        text, _, title = made["response"].rpartition(" Next: ")
        assert title == known.titles[known.at[row["item"]]] and title not in made["prompt"]
        wrong += row["rationales"].index(text) == row["noise"]
    assert len(rows) == len(of) == SMALL["users"] and wrong < 0.1 * len(rows), "by chance a quarter"


def test_an_embedding_model_reads_the_texts_and_is_saved_with_the_student(tmp_path):
    task, data = kdhub.open_task(TASK), kdhub.open_data(small())
    model = kdhub.open_task("text-embedding").tiny_recipe(tmp_path)["teacher"]
    source = model if isinstance(model, str) else model["source"]
    student = kdhub.open_student(
        {"source": "thought-space", "dim": 4, "text_encoder": source}, task=TASK, facts=task.survey([(data, "train")])
    )
    (tmp_path / "saved").mkdir()
    student.save(tmp_path / "saved")
    examples = prepare_for(student.classes)(list(data.split("test"))[:5])
    loaded = task.load(tmp_path / "saved")
    given, again = (one.signals(examples, "logits")["logits"] for one in (student, loaded))
    np.testing.assert_array_equal(given, again)
    assert student.reads.width == loaded.reads.width != 64


# -- what is wrong --------------------------------------------------------------------------------------------------


def folder_of(path, items, train):
    path.mkdir()
    for name, rows in (("items", items), ("train", train)):
        if rows:
            (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_and_items_that_mean_nothing_are_refused_by_row(tmp_path):
    items = [{"item": "a", "title": "A"}, {"item": "b", "title": ""}, {"item": "c"}]
    row, plain = {"user": "u", "history": ["a"], "item": "b"}, {"method": "supervised", "evaluation": {"data": []}}

    def run(name, items, rows, **changes):
        data = {"train": [folder_of(tmp_path / name, items, rows)]}
        base = recipe(**{**plain, "data": data, "options": {"max_steps": 1, "batch_size": 2}, **changes})
        return kdhub.distill(base, out=tmp_path / f"run-{name}")

    with pytest.raises(DataError, match="has no split 'items', only train"):
        run("none", None, [row])
    with pytest.raises(DataError, match="split 'items', row 2: item 'a' is there twice"):
        run("twice", [items[0], items[0]], [row])
    with pytest.raises(UsageError, match="items=text needs a text of each item, and 2 of 3 have none, such as 'b'"):
        run("text", items, [row], student={"source": "thought-space", "items": "text"})
    bad = [row, {**row, "item": "zebra"}, {**row, "history": []}]
    with pytest.raises(
        DataError, match=r"with an item that is not among the items \(row 2: 'zebra'\).*without a history"
    ):
        run("bad", items, bad)
    run("skipped", items, [*bad, {"user": "v", "history": ["c"], "item": None}], on_bad_rows="skip")
    (alone,) = prepare_for(["a"])([{"history": '["a"]'}])
    assert (alone["length"], alone["label"], alone["history"]) == (0, -1, [0]), "nothing to learn, but to rank for"
    with pytest.raises(DataError, match="no column 'rationales'.*"):
        run("silent", items, [row], method="pulse", options={"mix": 0.1})


def test_students_without_a_space_and_a_mix_without_validation_are_refused(tmp_path):
    data = {"train": [small()]}
    with pytest.raises(UsageError, match=r"mix is chosen by validation rows, and the recipe has none \(mix=None\)"):
        kdhub.distill(recipe(data={**data, "validation": []}), out=tmp_path / "mix")
    for n, student in enumerate(({"items": "id"}, {"rationales": "feature"})):
        with pytest.raises(CompatibilityError, match="a student with a space of rationales"):
            kdhub.distill(recipe(student={"source": "thought-space", **student}), out=tmp_path / str(n))
    with pytest.raises(CompatibilityError):
        kdhub.distill(recipe(student="popularity"), out=tmp_path / "popular")
    for options, says in (({"n": 2, "wrong": 2}, r"wrong must be from 0 to below n \(wrong=2, n=2\)"),
                          ({"teacher": "openai:x", "template": "why?"}, "must contain {history}"),
                          ({"chat": True}, "settings of a language model")):  # fmt: skip
        with pytest.raises(UsageError, match=says):
            kdhub.open_data({"source": "rationales:tastes", "options": options})
    with pytest.raises(UsageError, match=r"domain must be films or books \(domain='games'\)"):
        kdhub.open_data({"source": "tastes", "options": {"domain": "games"}})


def test_a_log_names_an_item_that_nobody_described():
    log = [Taken("u", item, n, f"row {n + 1}") for n, item in enumerate("abcd")]
    data = leave_last("x", lambda: log, lambda: [{"item": i} for i in "abc"], least=4, rows_per_user=1, key={"v": "t"})
    with pytest.raises(DataError, match="row 4: item 'd' is not among the 3 items"):
        data.split("train")
