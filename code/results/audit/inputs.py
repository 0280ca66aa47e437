"""The tables that were audited here, from data that this project did not make.

    python inputs.py FOLDER [--cifar10 IMAGES]        IMAGES holds test/<class>/*

Writes into FOLDER: digits-pixels.npy (1,797 x 64, uint8), cifar10-pixels.npy (10,000 x 3,072, uint8) and their labels;
sentences.npy: the first sentences of the docstrings of Python's standard library, embedded by the package
wordllama, which carries its model, l2_supercat (256 dimensions): pip install wordllama==0.4.0.post1. It averages token
vectors that were taken from language models and trained on pairs of sentences.
"""

import argparse
import ast
import sysconfig
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


def sentences() -> list[str]:
    """Each once, in the order of the files."""
    found: dict[str, None] = {}
    for file in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if {"site-packages", "test", "tests", "idle_test"} & set(file.parts):
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # files that are there to be wrong
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = " ".join((ast.get_docstring(node) or "").split()).partition(". ")[0]
                if len(text.split()) >= 4:
                    found[text] = None
    return list(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cifar10", type=Path, metavar="IMAGES")
    options = parser.parse_args()
    import wordllama  # not among the project's packages

    if options.folder.exists() and not options.folder.is_dir():
        parser.error(f"{options.folder} is no folder")
    options.folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    np.save(options.folder / "digits-pixels.npy", digits.data.astype(np.uint8))
    np.save(options.folder / "digits-labels.npy", digits.target)
    carried = Path(wordllama.__file__).parent  # weights and tokenizer; nothing is downloaded
    model = wordllama.WordLlama.load(cache_dir=carried, disable_download=True)
    np.save(options.folder / "sentences.npy", model.embed(sentences()))
    if options.cifar10:
        files = sorted((options.cifar10 / "test").glob("*/*"))
        np.save(options.folder / "cifar10-pixels.npy", np.stack([np.asarray(Image.open(f)).ravel() for f in files]))
        np.save(
            options.folder / "cifar10-labels.npy", np.unique([f.parent.name for f in files], return_inverse=True)[1]
        )


if __name__ == "__main__":
    main()
