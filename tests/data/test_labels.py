"""Tables of labels as people have them."""

import pytest
from helpers.data import FAST, write_pictures
from helpers.refusals import refused

from vae_lab.data.labels import read_labels
from vae_lab.utils.errors import UsageError

NAMES = ["a.png", "b.png", "sub/c.png"]
CELEBA = "3\nBald Smiling\na.png -1  1\nb.png -1 -1\nc.png  1 -1\n"
TABLES = {
    "metadata.csv": 'file_name,text,label\nsub/c.png,"two\nlines, and a comma",dog\na.png,x,cat\nb.png,y,dog\n',
    "metadata.jsonl": '{"file_name": "a.png", "label": "cat"}\n{"file_name": "b.png", "label": "dog"}\n\n'
    '{"file_name": "sub/c.png", "label": "dog"}\n',
    "kaggle.csv": "id,breed\na,cat\nb,dog\nc,dog\n",  # no suffix, unknown names of columns
    "bom.csv": "\ufeffimage;class\nimages/a.png;cat\nimages/b.png;dog\nimages/c.png;dog\n",
    "labels.tsv": "path\tcategory\na.png\tcat\nb.png\tdog\nc.png\tdog\nd.png\tbird\n",  # a name more
    "no_header.csv": "a.png,cat\nb.png,dog\nc.png,dog\n",
    "identity.txt": "a.png cat\nb.png dog\nc.png dog\n",
}


def read(tmp_path, name, text, column=None):
    (tmp_path / name).write_text(text, encoding="utf-8")
    labels, classes = read_labels(name, tmp_path, NAMES, column)
    return [classes[label] for label in labels], classes


@pytest.mark.parametrize("name", TABLES)
def test_every_table_gives_each_picture_its_label(tmp_path, name):
    assert read(tmp_path, name, TABLES[name]) == (["cat", "dog", "dog"], ("cat", "dog"))


def test_a_column_of_an_attribute_list(tmp_path):
    assert read(tmp_path, "list_attr_celeba.txt", CELEBA, "Smiling") == (["1", "-1", "-1"], ("-1", "1"))
    with pytest.raises(UsageError, match=r"which column has the labels is not clear\nexpected one of: Bald, Smiling"):
        read(tmp_path, "list_attr_celeba.txt", CELEBA)
    with pytest.raises(UsageError, match=r"no column Smilling\ndid you mean data\.label_name=Smiling\?"):
        read(tmp_path, "list_attr_celeba.txt", CELEBA, "Smilling")


def test_numbers_are_sorted_as_numbers(tmp_path):
    assert read(tmp_path, "l.csv", "f,label\na.png,10\nb.png,9\nc.png,100\n")[1] == ("9", "10", "100")


def test_a_table_in_each_split(tmp_path):
    for part, label in (("train", "cat"), ("test", "dog")):
        (tmp_path / part).mkdir()
        (tmp_path / part / "metadata.csv").write_text(f"file_name,label\n1.png,{label}\n")
    labels, classes = read_labels("metadata.csv", tmp_path, ["test/1.png", "train/1.png"], None)
    assert [classes[label] for label in labels] == ["dog", "cat"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,label\na.png,cat\nb.png,\n", r"2 of 3 pictures have no label in it, such as b\.png\n.*as a\.png"),
        ("", r"cannot be read \(it is empty\)"),
        ("file_name\na.png\n", r"which column has the labels is not clear"),
    ],
)
def test_a_table_that_does_not_fit_is_named(tmp_path, text, message):
    with pytest.raises(UsageError, match=r"data\.labels=.*l\.csv: " + message):
        read(tmp_path, "l.csv", text)


def test_bad_json_and_a_missing_table_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"l\.jsonl: cannot be read"):
        read(tmp_path, "l.jsonl", '{"file_name": ')
    with pytest.raises(UsageError, match=r"data\.labels=gone\.csv: no such file, nor in "):
        read_labels("gone.csv", tmp_path, NAMES, None)


def test_labels_from_the_command_line(command):
    write_pictures(command.cwd / "p")
    (command.cwd / "l.csv").write_text("name,kind\n" + "".join(f"{i:03d},{'xyz'[i % 3]}\n" for i in range(30)))
    options = ("data=folder", "data.folder=p", "data.image_size=16", *FAST, "callbacks.images=null")
    done = command(*options, "data.labels=l.csv", "model.conditional=true")
    assert done.code == 0, done.stderr
    assert "left out" not in done.stderr
    refused(command(*options, "data.labels=m.csv"), "data.labels=m.csv", "no such file")
