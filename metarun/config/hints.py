"""Names of keys and values in other programs, and their names in metarun, for `did you mean` hints."""

KEYS = {  # another program's key or command -> metarun's; ` or ` separates alternatives
    **dict.fromkeys(("train", "training", "fit"), "mode=train"),
    **dict.fromkeys(("test", "evaluate", "evaluation", "validate"), "mode=evaluate checkpoint=RUN"),
    **dict.fromkeys(("predict", "infer", "inference"), "mode=predict checkpoint=RUN support=DIR query=DIR"),
    **dict.fromkeys(("report", "compare"), "mode=report runs=DIR"),
    **dict.fromkeys(("sweep", "multirun"), "--multirun"),
    "help": "--help",
    "version": "--version",
    **dict.fromkeys(("lr", "learning_rate", "rate"), "outer_learning_rate or inner_learning_rate"),
    **dict.fromkeys(("inner_lr", "fast_lr", "task_lr", "update_lr", "step_size"), "inner_learning_rate"),
    **dict.fromkeys(("outer_lr", "meta_lr", "beta"), "outer_learning_rate"),
    **dict.fromkeys(("steps", "num_steps", "n_steps"), "inner_loop or iterations"),
    **dict.fromkeys(("inner_steps", "inner_iterations", "adaptation_steps", "num_updates"), "inner_loop"),
    **dict.fromkeys(("epochs", "num_epochs", "max_steps", "episodes", "outer_steps", "outer_loop"), "iterations"),
    **dict.fromkeys(("n_way", "num_ways", "classes", "num_classes"), "ways"),
    **dict.fromkeys(("k_shot", "num_shots", "k_spt", "support_size"), "shots"),
    **dict.fromkeys(("n_query", "num_queries", "k_qry", "query_size"), "queries"),
    **dict.fromkeys(("batch_size", "batch", "bs", "meta_batch_size", "task_batch"), "meta_batch"),
    **dict.fromkeys(("gpu", "gpus", "cuda"), "device=cuda"),
    "cpu": "device=cpu",
    **dict.fromkeys(("data", "data_path"), "dataset or data_dir"),
    "data_root": "data_dir or dataset.root",
    **dict.fromkeys(("model", "network", "net", "arch", "architecture", "encoder"), "backbone"),
    **dict.fromkeys(("algorithm", "algo"), "method"),
    **dict.fromkeys(("preset", "config"), "experiment"),
    **dict.fromkeys(("output_dir", "out_dir", "output", "log_dir", "save_dir", "run_dir"), "hydra.run.dir"),
    **dict.fromkeys(("num_workers", "n_jobs", "processes"), "engine.workers"),
    **dict.fromkeys(("amp", "fp16", "bf16", "half", "mixed_precision"), "engine.precision=bfloat16"),
    **dict.fromkeys(("first_order", "second_order", "fo"), "use_second_order"),
    **dict.fromkeys(("clip", "grad_clip", "clip_grad"), "outer_clip"),
    **dict.fromkeys(("scheduler", "schedule", "lr_scheduler", "lr_schedule"), "outer_schedule"),
    **dict.fromkeys(("pretrained", "weights", "init"), "start"),
    **dict.fromkeys(("ckpt", "checkpoint_path", "load"), "checkpoint"),
    "random_seed": "seed",
    "test_tasks": "eval.tasks",
    "val_tasks": "eval.validation_tasks",
}
VALUES = {  # key -> another program's value -> metarun's
    "mode": {
        **dict.fromkeys(("test", "testing", "eval", "validate"), "evaluate"),
        **dict.fromkeys(("fit", "run"), "train"),
        **dict.fromkeys(("infer", "inference", "label"), "predict"),
        "compare": "report",
    }
}


def hint_for_key(word: str) -> str:
    """`did you mean 'X' or 'Y'?` for another program's key or command; empty if the word is not known."""
    names = KEYS.get(word.strip("-+").lower().replace("-", "_"), "")
    return f"did you mean {' or '.join(map(repr, names.split(' or ')))}?" if names else ""
