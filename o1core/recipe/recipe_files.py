"""Recipe files: JSON objects of flat settings, shipped beside this module or written by a user."""

import json
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_json
from .fields import check_range
from .methods import METHODS
from .recipe import SPECS

SHIPPED = Path(__file__).parent


def read_recipe(name: str, method: str = "o1-pruner") -> dict[str, Any]:
    """The flat settings of a shipped recipe ("paper", "official", ...) or of a JSON file, for `Recipe.of`.

    A method's own settings override the recipe's. The recipe's settings for that method (its object "methods") override
    both. Raises UserError naming the file and the key that is unknown, of the wrong type or out of its range.
    """
    if method not in METHODS:  # of a study's list: --method takes no other
        raise UserError(f"--methods: {method} is none of {', '.join(METHODS)}")
    path = SHIPPED / f"{name}.json"
    if Path(name).name != name or not path.exists():
        path = Path(name)
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in SHIPPED.glob("*.json")))
        raise UserError(f"--recipe: {name} is neither a shipped recipe ({known}) nor a file")
    settings = read_json(path)
    of_methods = settings.pop("methods", {}) if isinstance(settings, dict) else None
    if not isinstance(of_methods, dict):
        raise UserError(f"{path}: a recipe is a JSON object of settings, and so is its key methods")
    for other, changes in of_methods.items():
        if other not in METHODS or not isinstance(changes, dict):
            raise UserError(f"{path}: methods: {other} must be one of {', '.join(METHODS)} with an object of settings")
        check_settings(changes, path)
    check_settings(settings, path)
    return settings | METHODS[method] | of_methods.get(method, {})


def check_settings(settings: dict[str, Any], path: Path) -> None:
    """Raise UserError where a key is no setting, or its value has the wrong type or is out of its range."""
    for key, value in settings.items():
        if key not in SPECS:
            raise UserError(f"{path}: {key} is not a setting; the settings are: {', '.join(SPECS)}")
        spec = SPECS[key]
        choices = None if spec.field.metadata["own_code"] else spec.field.metadata["choices"]
        integral = spec.kind is float and type(value) is int and abs(value) < 2**1000
        right = (value is None and spec.optional) or type(value) is spec.kind or integral
        if not right or (choices and value not in choices):
            shown = json.dumps(value)
            shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
            raise UserError(f"{path}: {key}: {shown} is not {' or '.join(choices or (spec.kind.__name__,))}")
        check_range(f"{path}: {key}", value, spec.field)
