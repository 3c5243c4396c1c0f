"""What people get wrong, as plain data: what is typed, and the words of the one line that answers it.

`CONFIG` is answered before any work and without torch; `WORK` by what is read. `PREPARED` names are of
`mistakes_files.py`, which makes what the row needs in the working folder.
"""

from __future__ import annotations

from typing import NamedTuple


class Mistake(NamedTuple):
    typed: str
    words: tuple[str, ...]
    prepared: str = ""


KEYS = [
    Mistake("infer_loop=3", ("infer_loop", "'inner_loop'")),
    Mistake("eval.taks=3", ("eval.taks", "'eval.tasks'")),
    Mistake("backbone.filter=3", ("backbone.filter", "'backbone.filters'")),
    Mistake("filters=3", ("filters", "'backbone.filters'")),
    Mistake("backbone.hidden=[3]", ("backbone.hidden", "backbone=conv4", "backbone.filters")),
    Mistake("backbone.colour=3", ("backbone.colour", "backbone.filters")),
    Mistake("backbone.name=mlp", ("backbone.name",)),
    Mistake("eval={taks:3}", ("eval.taks", "'eval.tasks'")),
    Mistake("backbone@x=mlp", ("backbone@x",)),
    Mistake("+infer_loop=3", ("infer_loop", "'inner_loop'")),
    Mistake("+inner_loop=3", ("+inner_loop=3", "without the plus")),
    Mistake("++x=1", ("x", "no such key")),
    Mistake("+experiment=maml_sinusoid", ("without the plus",)),
    Mistake("~method", ("~method",)),
    Mistake("~ways", ("~ways",)),
    Mistake("hydra.foo=3", ("hydra.foo",)),
    Mistake("--multirun infer_loop=1,2", ("infer_loop", "'inner_loop'")),
    Mistake("ways", ("ways", "no value")),
    Mistake("way", ("way", "'ways'")),
    Mistake("ways:3", ("ways:3", "'ways'")),
    Mistake("=3", ("no such key",)),
    Mistake("dataset=sinusoid dataset.rotations=true", ("dataset=sinusoid", "dataset.frequency")),
    Mistake("dataset.frequency=[1,1]", ("dataset=glyphs", "dataset.seed")),
    Mistake("method=l2f method.alpha=tensor", ("method.alpha", "method=l2f", "none")),
    Mistake("method=mtnet method.masks=false", ("method.masks", "'method.mask'")),
]

CHOICES = [
    Mistake("method=mamml", ("method=mamml", "maml", "'maml'")),
    Mistake("dataset=omniglott", ("miniimagenet, omniglot, sinusoid", "'omniglot'")),
    Mistake("experiment=maml_sinusoids", ("experiment=maml_sinusoids", "maml_omniglot_5way_1shot", "'maml_sinusoid'")),
    Mistake("backbone=null", ("backbone=null",)),
    Mistake("method=3", ("method=3",)),
    Mistake("dataset=[glyphs,sinusoid]", ("dataset=[glyphs,sinusoid]",)),
    Mistake("hydra/sweeper=optuna", ("hydra/sweeper=optuna", "basic")),
    Mistake("--multirun method=maml,mamml", ("method=mamml",)),
    Mistake("mode=training", ("mode=training", "train, evaluate, predict", "'train'")),
    Mistake("outer_schedule=cosin", ("outer_schedule=cosin", "constant, cosine", "'cosine'")),
    Mistake("batch_norm=running", ("batch_norm=running", "transductive")),
    Mistake("engine.meta_gradient=mix", ("engine.meta_gradient=mix", "unrolled, mixed")),
    Mistake("engine.meta_gradient=mixed engine.segment=0", ("engine.segment=0", "1 or more")),
    Mistake("engine.precision=float16", ("engine.precision=float16", "float32, tf32, bfloat16")),
    Mistake("engine.tasks=loop", ("engine.tasks=loop", "vectorised, looped", "'looped'")),
    Mistake("backbone.norm=batchnorm", ("backbone.norm=batchnorm", "'batch'")),
    Mistake("backbone.downsample=max", ("backbone.downsample=max", "pool, stride")),
    Mistake("method=msgd method.alpha=elements", ("method.alpha=elements", "'element'")),
    Mistake("dataset=omniglot dataset.split=vinyal", ("dataset.split=vinyal", "'vinyals'")),
    Mistake("dataset=miniimagenet dataset.split=rawi", ("dataset.split=rawi", "ravi, vinyals", "'ravi'")),
    Mistake("dataset=cifar_fs dataset.split=oreshkin", ("dataset.split=oreshkin", "bertinetto")),
    Mistake("dataset=cub dataset.augment=[crop,flop]", ("dataset.augment=flop", "'flip'")),
]

VALUES = [
    Mistake("ways=", ("ways=", "has no value")),
    Mistake("ways=abc", ("ways=abc", "whole number")),
    Mistake("ways=1.5", ("ways=1.5", "whole number")),
    Mistake("ways=true", ("ways=true", "whole number")),
    Mistake("iterations=1e3", ("iterations=1e3", "whole number")),
    Mistake("ways=null", ("ways=null", "needs a value")),
    Mistake("ways=???", ("ways=???", "needs a value", "classes of a task")),
    Mistake("ways=1", ("ways=1", "2 or more")),
    Mistake("ways=100000000000", ("ways=100000000000", "100000 or less")),
    Mistake("ways=1,2", ("ways=1,2", "--multirun")),
    Mistake("seed=range(3)", ("seed=range(3)", "--multirun")),
    Mistake("ways=${foo}", ("ways", "foo")),
    Mistake("ways=${ways}", ("ways", "Recursive")),
    Mistake("'ways=[1'", ("ways=[1", "quotes")),
    Mistake("inner_learning_rate=inf", ("inner_learning_rate=inf", "finite")),
    Mistake("inner_learning_rate=nan", ("inner_learning_rate=nan", "finite")),
    Mistake("inner_learning_rate=-0.1", ("inner_learning_rate=-0.1", "0 or more")),
    Mistake("inner_learning_rate=fast", ("inner_learning_rate=fast", "number")),
    Mistake("inner_learning_rate=[1]", ("inner_learning_rate=[1]", "number")),
    Mistake("outer_clip=0", ("outer_clip=0", "greater than 0")),
    Mistake("seed=-1", ("seed=-1", "0 or more")),
    Mistake("seed=18446744073709551616", ("seed=18446744073709551616", "or less")),
    Mistake("inner_loop=10001", ("inner_loop=10001", "10000 or less")),
    Mistake("eval.tasks=1", ("eval.tasks=1", "2 or more")),
    Mistake("eval.every=0", ("eval.every=0", "1 or more")),
    Mistake("save.keep=0", ("save.keep=0", "1 or more")),
    Mistake("device=gpu", ("device=gpu", "auto, cpu, cuda or cuda:N")),
    Mistake("use_second_order=maybe", ("use_second_order=maybe", "true or false")),
    Mistake("backbone.filters=abc", ("backbone.filters=abc", "whole number")),
    Mistake("backbone.filters=0", ("backbone.filters=0", "1 or more")),
    Mistake("dataset=sinusoid dataset.frequency=[1]", ("dataset.frequency=[1.0]", "[LOWEST,HIGHEST]")),
    Mistake("dataset=sinusoid dataset.frequency=[2,1]", ("dataset.frequency=[2.0, 1.0]", "[LOWEST,HIGHEST]")),
    Mistake("dataset=sinusoid dataset.frequency=[0,1]", ("dataset.frequency=0.0", "greater than 0")),
    Mistake("dataset=sinusoid dataset.frequency=[a]", ("dataset.frequency=[a]", "number")),
    Mistake("dataset=sinusoid backbone.hidden=8", ("backbone.hidden=8", "list")),
    Mistake("dataset=sinusoid backbone.hidden=[[1]]", ("backbone.hidden=[[1]]", "plain list")),
    Mistake("dataset=sinusoid backbone.hidden=[8,null]", ("backbone.hidden=[8", "needs a value")),
    Mistake("dataset=cub dataset.augment=crop", ("dataset.augment=crop", "list")),
    Mistake("eval=3", ("eval=3", "several keys")),
    Mistake("eval=null", ("eval=null",)),
    Mistake("save=[1]", ("save=[1]", "several keys")),
    Mistake("data_dir=", ("data_dir=", "has no value")),
    Mistake("hydra.run.dir=", ("hydra.run.dir=", "has no value")),
    Mistake("dataset=folder", ("dataset.root=???", "needs a value", "a folder of class folders")),
    Mistake("dataset=folder dataset.root=[a]", ("dataset.root=[a]", "must be text")),
    Mistake("dataset=folder dataset.root=own dataset.size=3", ("dataset.size=3", "4 or more"), "own"),
    Mistake("--multirun ways=abc,2", ("ways=abc", "whole number")),
]

TOGETHER = [
    Mistake("method=fomaml use_second_order=true", ("use_second_order=true", "method=maml")),
    Mistake("use_second_order=false first_order_steps=10", ("first_order_steps=10", "use_second_order=false")),
    Mistake("first_order_steps=600", ("first_order_steps=600", "iterations=600")),
    Mistake("method=msgd inner_loop=0", ("inner_loop=0", "method=msgd")),
    Mistake("method=mtnet inner_loop=0", ("inner_loop=0", "method=mtnet")),
    Mistake("method=warpgrad inner_loop=0", ("inner_loop=0", "method=warpgrad")),
    Mistake("method=mtnet method.mask=false method.full=true", ("method.full=true", "method.mask=false")),
    Mistake("method=warpgrad method.initialisation=frozen", ("method.initialisation=frozen", "objective=trajectory")),
    Mistake(
        "method=warpgrad method.objective=unrolled method.approximate=true",
        ("method.approximate=true", "method.objective=unrolled"),
    ),
    Mistake("engine.tasks=compiled engine.precision=bfloat16", ("engine.precision=bfloat16", "not compiled")),
    Mistake("engine.precision=tf32 device=cpu", ("engine.precision=tf32", "device=cpu", "float32 or bfloat16")),
    Mistake("engine.segment=10", ("engine.segment=10", "engine.meta_gradient=mixed")),
    Mistake(
        "method=warpgrad engine.meta_gradient=mixed engine.segment=10",
        ("engine.segment=10", "method.objective=warp_maml"),
    ),
    Mistake(
        "method=warpgrad method.objective=trajectory engine.meta_gradient=mixed",
        ("engine.meta_gradient=mixed", "method.objective=trajectory"),
    ),
    Mistake("method=warpgrad method.kernel=4", ("method.kernel=4", "odd")),
    Mistake("method=warpgrad method.after=[]", ("method.after=[]", "null")),
    Mistake("method=warpgrad method.after=[block.1]", ("method.after", "'block.1'", "did you mean 'blocks.1'")),
    Mistake("method=warpgrad method.after=[head,head]", ("method.after", "'head' twice")),
    Mistake("method=warpgrad dataset=sinusoid method.after=[layers]", ("method.after", "layers.0")),
    Mistake("method=warpgrad dataset=sinusoid method.norm=true", ("method.norm=true", "backbone=mlp")),
    Mistake("method=warpgrad dataset=sinusoid method.kernel=5", ("method.kernel=5", "backbone=mlp")),
    Mistake("method=warpgrad dataset=sinusoid backbone.hidden=[]", ("backbone.hidden=[]", "method=warpgrad")),
    Mistake("method=boil dataset=sinusoid backbone.hidden=[]", ("backbone.hidden=[]", "method=boil")),
    Mistake("dataset=sinusoid backbone=conv4", ("backbone=conv4", "dataset=sinusoid", "backbone=mlp")),
    Mistake(
        "dataset=folder dataset.root=own dataset.size=8 backbone=conv4",
        ("dataset.size=8", "16 is the least", "backbone.downsample=stride"),
        "own",
    ),
    Mistake("dataset=folder dataset.root=own dataset.size=8 backbone.norm=instance", ("dataset.size=8",), "own"),
    Mistake("ways=151", ("ways=151", "dataset=glyphs", "150 is the most")),
    Mistake("dataset=fc100 ways=21", ("ways=21", "dataset.split=oreshkin", "60/20/20", "20 is the most")),
    Mistake("dataset=omniglot dataset.split=maml ways=401", ("ways=401", "400 is the most")),
    Mistake("dataset=omniglot dataset.rotations=false ways=173", ("ways=173", "172 is the most")),
    Mistake("queries=20", ("shots=1 + queries=20", "21 images a class", "20 at most")),
    Mistake("shots=10", ("shots=10 + eval.queries=15", "lower one of the two")),
    Mistake("eval.shots=6", ("eval.shots=6 + eval.queries=15",)),
    Mistake("dataset=miniimagenet queries=600", ("queries=600", "600 at most")),
    Mistake("dataset=cub shots=50", ("shots=50 + queries=15", "60 at most")),
    Mistake("experiment=maml_omniglot_5way_1shot eval.shots=30", ("eval.shots=30", "dataset=omniglot")),
]

MODES = [
    Mistake("mode=evaluate", ("mode=evaluate", "checkpoint=RUN")),
    Mistake("mode=predict support=own query=own", ("mode=predict", "checkpoint=RUN"), "own"),
    Mistake("query=own", ("query=", "mode=predict"), "own"),
    Mistake("support=own", ("support=", "mode=predict"), "own"),
    Mistake("adapted_weights=true", ("adapted_weights=", "mode=predict")),
    Mistake("--multirun resume=a,b", ("resume=a,b",)),
    Mistake("--multirun resume=runs seed=0,1", ("resume=runs", "--multirun")),
    Mistake("resume=auto", ("resume=auto", "hydra.run.dir=FOLDER")),
    Mistake("--multirun resume=auto seed=0,1", ("resume=auto", "hydra.sweep.dir=FOLDER")),
    Mistake("resume=auto mode=evaluate hydra.run.dir=x", ("mode=evaluate",)),
]

PATHS = [
    Mistake("resume=nowhere", ("resume=nowhere", "checkpoints")),
    Mistake("resume=plain", ("resume=plain",), "plain"),
    Mistake("resume=", ("resume=", "has no value")),
    Mistake("mode=evaluate checkpoint=gone", ("checkpoint=gone", "no such")),
    Mistake("mode=evaluate checkpoint=own", ("checkpoint=own", "no such"), "own"),
    Mistake("mode=evaluate checkpoint=", ("checkpoint=", "has no value")),
    Mistake("dataset=folder dataset.root=gone", ("dataset.root=gone", "no such folder or file")),
    Mistake("dataset=cub dataset.split=gone.json", ("dataset.split=gone.json", "no such file")),
    Mistake("data_dir=plain", ("data_dir=plain", "is a file"), "plain"),
    Mistake("cache_dir=plain", ("cache_dir=plain", "is a file"), "plain"),
    Mistake("hydra.run.dir=plain/x", ("plain/x", "run folder"), "plain"),
    Mistake("hydra.run.dir=/proc/x", ("/proc/x",)),
    Mistake("--multirun hydra.sweep.dir=plain seed=0,1", ("plain", "run folder"), "plain"),
    Mistake("", ("outputs", "hydra.run.dir=FOLDER"), "file called outputs"),
]

FLAGS = [
    Mistake("--foo", ("--foo",)),
    Mistake("--cfg", ("--cfg",)),
    Mistake("--cfg foo", ("foo",)),
    Mistake("--resolve", ("--resolve",)),
    Mistake("--config-dir nowhere", ("nowhere",)),
    Mistake("--config-name other", ("other",)),
]

OWN = [  # experiments of one's own
    Mistake("--config-dir own experiment=key", ("experiment/key.yaml", "infer_loop", "'inner_loop'"), "own"),
    Mistake("--config-dir own experiment=type", ("experiment/type.yaml", "ways", "whole number"), "own"),
    Mistake("--config-dir own experiment=range", ("ways=1", "2 or more"), "own"),
    Mistake("--config-dir own experiment=cut", ("cut.yaml",), "own"),
    Mistake("--config-dir own experiment=twice", ("twice.yaml", "duplicate key ways"), "own"),
    Mistake("--config-dir own experiment=tab", ("tab.yaml", "\\t"), "own"),
    Mistake("--config-dir own experiment=bytes", ("not UTF-8",), "own"),
    Mistake("--config-dir own experiment=bare", ("experiment/bare.yaml", "# @package _global_"), "own"),
    Mistake("--config-dir own experiment=choice", ("dataset=glyps", "'glyphs'"), "own"),
    Mistake("--config-dir own experiment=group", ("experiment/group", "datset"), "own"),
    Mistake("--config-dir own experiment=below", ("experiment/below.yaml", "eval.taks", "'eval.tasks'"), "own"),
    Mistake("--config-dir own experiment=typ", ("experiment=typ", "'type'"), "own"),
]

CONFIG = [*KEYS, *CHOICES, *VALUES, *TOGETHER, *MODES, *PATHS, *FLAGS, *OWN]

CHECKPOINTS = [
    Mistake("mode=evaluate checkpoint=plain", ("checkpoint plain", "cannot be read"), "plain"),
    Mistake("mode=evaluate checkpoint=cut.pt", ("checkpoint cut.pt", "cannot be read"), "checkpoints"),
    Mistake("mode=evaluate checkpoint=flipped.pt", ("checkpoint flipped.pt", "is damaged"), "checkpoints"),
    Mistake("mode=evaluate checkpoint=foreign.pt", ("foreign.pt", "not a checkpoint of this version"), "checkpoints"),
    Mistake("mode=evaluate checkpoint=code.pt", ("code.pt", "cannot be read"), "checkpoints"),
    Mistake("mode=evaluate checkpoint=pickle.pt", ("pickle.pt", "cannot be read"), "checkpoints"),
    Mistake("mode=evaluate checkpoint=bare.pt", ("bare.pt", "holds no settings"), "checkpoints"),
    Mistake("mode=evaluate checkpoint=newer.pt", ("newer.pt", "this version"), "checkpoints"),
    Mistake("mode=evaluate checkpoint=thin.pt", ("thin.pt", "another architecture"), "checkpoints"),
    Mistake("mode=evaluate checkpoint=run seed=7", ("checkpoint=run", "seed=7"), "checkpoints"),
    Mistake("mode=evaluate checkpoint=run backbone.filters=3", ("backbone.filters",), "checkpoints"),
    Mistake("mode=evaluate checkpoint=run experiment=maml_sinusoid", ("experiment=",), "checkpoints"),
    Mistake("mode=evaluate checkpoint=run dataset=glyphs ways=200", ("ways=200", "150 is the most"), "checkpoints"),
    Mistake("checkpoint=run", ("checkpoint=", "resume=RUN"), "checkpoints"),
    Mistake("resume=run mode=evaluate checkpoint=run", ("resume=",), "checkpoints"),
    Mistake("resume=run iterations=1", ("iterations=1", "step 2 already"), "checkpoints"),
    Mistake("resume=run first_order_steps=1", ("resume=run", "first_order_steps=1"), "checkpoints"),
    Mistake("resume=cosine iterations=9", ("resume=cosine", "iterations=9", "outer_schedule=cosine"), "checkpoints"),
    Mistake("resume=broken", ("broken", "none of its checkpoints is whole"), "checkpoints"),
    Mistake("resume=auto hydra.run.dir=run dataset=sinusoid", ("run", "has", "same settings"), "checkpoints"),
    Mistake(
        "mode=predict checkpoint=run support=own query=own", ("dataset=sinusoid", "no classes"), "checkpoints and own"
    ),
    Mistake("mode=predict checkpoint=run support=gone query=own", ("support=gone",), "checkpoints and own"),
    Mistake("mode=predict checkpoint=run support=own query=gone", ("query=gone",), "checkpoints and own"),
    Mistake("device=cuda:99 dataset=sinusoid", ("device=cuda:99", "device=cpu")),
]

DATA = [
    Mistake("cache_dir=/proc/x", ("cache_dir", "/proc/x")),
    Mistake("dataset=miniimagenet data_dir=gone", ("data_dir=gone", "no such folder")),
    Mistake("dataset=miniimagenet data_dir=data", ("data_dir=data", "not found"), "data"),
    Mistake("dataset=omniglot data_dir=data download=false", ("data", "images_background"), "data"),
    Mistake("dataset=cub data_dir=data dataset.split=data/wrong.json", ("wrong.json", "must be JSON"), "data"),
    Mistake("dataset=cub data_dir=data dataset.split=data/lacks.json", ("lacks.json", "KeyError"), "data"),
    Mistake(
        "dataset=cub data_dir=data dataset.split=data/twice.json", ("twice.json", "'a' stands in it twice"), "data"
    ),
    Mistake("dataset=cub data_dir=data dataset.split=data/empty.json", ("empty.json", "val must be a list"), "data"),
    Mistake("dataset=cifar_fs data_dir=cut download=false", ("cifar-100-python.tar.gz", "put back"), "cut"),
    Mistake("dataset=fc100 data_dir=page download=false", ("cifar-100-python.tar.gz", "web page"), "page"),
    Mistake("dataset=miniimagenet data_dir=cut cache_dir=cache", ("mini-imagenet.tar.gz", "not a whole"), "cut"),
    Mistake("dataset=cub data_dir=cut cache_dir=cache", ("CUB_200_2011.zip", "not a whole"), "cut"),
    Mistake("dataset=omniglot data_dir=cut download=false cache_dir=cache", ("images_background.zip",), "cut"),
    Mistake("dataset=miniimagenet data_dir=code cache_dir=cache", ("cache-train.pkl", "it asks for"), "code"),
    Mistake("dataset=miniimagenet data_dir=hdf5 cache_dir=cache", ("train_data.hdf5", "HDF5"), "hdf5"),
    Mistake("dataset=folder dataset.root=empty cache_dir=cache", ("dataset.root=empty", "no class folders"), "folders"),
    Mistake("dataset=folder dataset.root=hollow cache_dir=cache", ("dataset.root=hollow",), "folders"),
    Mistake("dataset=folder dataset.root=flat cache_dir=cache", ("dataset.root=flat", "no class folders"), "folders"),
    Mistake("dataset=folder dataset.root=few cache_dir=cache", ("2 classes", "mode=predict"), "folders"),
    Mistake(
        "dataset=folder dataset.root=junk cache_dir=cache", ("junk", "no picture of the training classes"), "folders"
    ),
    Mistake("dataset=folder dataset.root=columns.csv", ("columns.csv", "label,path"), "folders"),
    Mistake("dataset=folder dataset.root=gaps.csv", ("gaps.csv", "line 2"), "folders"),
    Mistake("dataset=folder dataset.root=gone.csv", ("gone.csv", "no.png"), "folders"),
    Mistake("dataset=folder dataset.root=splits.csv", ("splits.csv", "train, val and test", "'dev'"), "folders"),
    Mistake("dataset=folder dataset.root=bytes.csv", ("bytes.csv", "UTF-8"), "folders"),
    Mistake("dataset=folder dataset.root=bare.csv", ("bare.csv", "lists no pictures"), "folders"),
]

WORK = [*CHECKPOINTS, *DATA]
