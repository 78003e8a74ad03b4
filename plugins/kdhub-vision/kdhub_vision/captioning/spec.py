"""Video captioning: the task, and what is provided for it."""

from kdhub import DatasetSpec, FolderFormat, MethodSpec, MetricSpec, NetworkSpec, Role, StudentSpec, TaskSpec

NAME = "video-captioning"
HERE = "kdhub_vision.captioning."
PAPER = "arXiv:2401.04903"

TASKS = (
    TaskSpec(
        name=NAME, target=f"{HERE}task:VideoCaptioning", traits=("apart",), signals=("text", "embedding", "maps"),
        formats=(FolderFormat(keys=("captioner",)), FolderFormat(heads=("CLIPModel", "CLIPVisionModelWithProjection"))),
        reads=(("frames", "caption"), ("measurement", "caption"), ("frames",)),
        summary="clips, or snapshots of a compressive camera, to a sentence that says what happens",
    ),
)  # fmt: skip

_method = MethodSpec.shorthand("kdhub_vision.methods.", tasks=(NAME,))
METHODS = (
    _method(
        "clip-pairs", "clip_pairs:ClipPairs", "clips and captions contrasted within a batch, as CLIP does",
        uses=("embedding",), labels=True, paper="arXiv:2103.00020", recipe="snapcap-clip",
        tags=("algorithm:contrastive",),
    ),
    _method(
        "caption", "snapcap:Caption", "captions by likelihood alone", uses=("text",), labels=True, baseline=True,
        paper=PAPER, recipe="snapcap-no-distill", tags=("algorithm:supervised",),
    ),
    _method(
        "snapcap-encoder", "snapcap:SnapcapEncoder", "an encoder of snapshots learns a CLIP's features of the frames",
        needs=("embedding", "maps"), paper=PAPER, recipe="snapcap-encoder", tags=("algorithm:feature",),
    ),
    _method(
        "snapcap", "snapcap:Snapcap", "captions straight from a snapshot, its encoder guided by a CLIP of the frames",
        needs=("embedding", "maps"), uses=("text", "embedding", "maps"), labels=True, paper=PAPER, recipe="snapcap",
        tags=("algorithm:feature",),
    ),
    _method(
        "caption-after-reconstruction", "after_reconstruction:AfterReconstruction",
        "frames are reconstructed from the snapshot, and captioned on the features of a CLIP", uses=("text",),
        labels=True, baseline=True, paper=PAPER, recipe="caption-after-reconstruction",
        tags=("algorithm:supervised",),
        roles=(Role(name="clip", summary="whose features of the frames captions are written on"),),
    ),
)  # fmt: skip

NETWORKS = (
    NetworkSpec(
        name="frame-clip", target=f"{HERE}clip:FrameClip", summary="small encoder of clips and captions in one space"
    ),
    NetworkSpec(
        name="snapshot-captioner", target=f"{HERE}networks:SnapshotCaptioner",
        summary="encoder of a compressive snapshot and its masks, and a decoder of captions",
    ),
    NetworkSpec(
        name="after-reconstruction", target=f"{HERE}networks:ReconstructedCaptioner",
        summary="reconstructs the frames of a snapshot, then captions them",
    ),
)  # fmt: skip

_student = StudentSpec.shorthand(f"{HERE}students:", tasks=(NAME,))
STUDENTS = (
    _student(
        "frame-clip", "frame_clip", "a fresh small encoder of clips and captions", argument="width=N,channels=N",
        example="width=16,channels=8", exposes=("text", "embedding", "maps"),
    ),
    _student(
        "snapshot-captioner", "snapshot_captioner", "a fresh captioner of snapshots, with masks of its own",
        argument="width=N,channels=N,layers=N,heads=N", example="width=16,channels=8,layers=1,heads=2",
        exposes=("text", "embedding", "maps"),
    ),
    _student(
        "after-reconstruction", "after_reconstruction", "a fresh reconstructor of snapshots, and a captioner of frames",
        argument="width=N,channels=N,layers=N,heads=N", example="width=16,channels=8,layers=1,heads=2",
        exposes=("text",),
    ),
)  # fmt: skip

DATASETS = (
    DatasetSpec(
        name="moving-digits", target=f"{HERE}data:moving_digits", tasks=(NAME,),
        summary="clips of one or two handwritten digits that move, and sentences that say how",
        splits=("train", "validation", "test"),
    ),
)  # fmt: skip

_metric = MetricSpec.shorthand(f"{HERE}metrics:", tasks=(NAME,))
METRICS = (
    _metric("exact-match", "exact_match", "share of captions that are one of the references, word by word"),
    _metric("bleu-4", "bleu_4", "BLEU of up to four words, over all captions"),
    _metric("rouge-l", "rouge_l", "F of the longest common subsequence, recall weighed 1.2^2 as much"),
    _metric("cider-d", "cider_d", "cosine of tf-idf n-grams with the references, with a penalty on length, times ten"),
    _metric("word-accuracy", "word_accuracy", "share of words that stand in the caption where the reference has them"),
    _metric(
        "psnr", "psnr", "of reconstructed frames, over all pixels, for models that reconstruct", unit="dB",
    ),
    _metric(
        "embedding-cosine", "embedding_cosine", "mean cosine of the student's and the teacher's vectors of a clip",
        fidelity=True,
    ),
    _metric(
        "first-word", "first_word", "time from a snapshot to the first word of its caption, median", unit="ms",
        cost=True, higher_is_better=False,
    ),
)  # fmt: skip
