"""The skills of the examples, called as an agent calls them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from examples.smart_manufacturing.images import load_parts
from muster.agent.catalog import load_skills
from muster.skill import InputRejected

# None of these skills asks for one.
_NO_CONTEXT: Any = None
QUICKSTART = Path(__file__).parents[3] / "examples" / "quickstart"


def call(module: str, skill: str, task_input: Any) -> Any:
    bound = load_skills([module], builtin=False)[skill]
    result = bound.call(orjson.dumps(task_input), _NO_CONTEXT)
    return json.loads(orjson.dumps(result))


def inspect(image: Any) -> Any:
    return call("examples.smart_manufacturing.skills", "inspect_digit", {"image": image})


def test_unseen_images_are_read_as_labelled() -> None:
    parts = load_parts()
    sample = [int(index) for index in parts.unseen[::9]]
    bound = load_skills(["examples.smart_manufacturing.skills"], builtin=False)["inspect_digit"]
    right = 0
    for index in sample:
        reading = bound.call(orjson.dumps(parts.as_input(index)), _NO_CONTEXT)
        right += reading.digit == parts.labels[index]
        assert reading.margin >= 0
    assert right / len(sample) >= 0.95


def test_the_halves_are_apart_and_all_there_is() -> None:
    parts = load_parts()
    assert len(parts.labels) == 1797
    assert sorted([*parts.trained, *parts.unseen]) == list(range(1797))


def test_the_split_is_the_same_each_time() -> None:
    assert load_parts().trained.tolist() == load_parts().trained.tolist()


@pytest.mark.parametrize(
    "image",
    [
        [[0.0] * 8] * 7,
        [[0.0] * 7] * 8,
        [[17.0] + [0.0] * 7] + [[0.0] * 8] * 7,
        [[-1.0] + [0.0] * 7] + [[0.0] * 8] * 7,
        "an image",
    ],
)
def test_what_is_no_image_is_rejected_for_good(image: Any) -> None:
    with pytest.raises(InputRejected):
        inspect(image)


def test_the_quickstart_tasks_name_skills_that_exist() -> None:
    known = load_skills(["examples.quickstart.skills"], builtin=True)
    lines = (QUICKSTART / "tasks.jsonl").read_text().splitlines()
    assert lines
    for line in lines:
        assert json.loads(line)["skill"] in known


def test_words_are_counted() -> None:
    counted = call(
        "examples.quickstart.skills", "count_words", {"text": "To be or not to be", "top": 1}
    )
    assert counted == {"words": 6, "top": {"to": 2}}
