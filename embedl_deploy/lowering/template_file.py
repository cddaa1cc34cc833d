"""How outputs of the user's own classes are rebuilt, as JSON, and back."""

from collections.abc import Sequence

from embedl_deploy.errors import CheckpointError
from embedl_deploy.lowering.graph_file import fields
from embedl_deploy.lowering.literals import Json, decode, encode
from embedl_deploy.tracing.structures import Template


def template_to_json(template: Template | None) -> Json:
    """Returns ``template`` as JSON.

    Raises:
        CheckpointError: An attribute of an output has no form as data.
    """
    if template is None:
        return None
    found = template.class_
    return {
        "children": [template_to_json(child) for child in template.children],
        "class": None if found is None else f"{found.__module__}:{found.__qualname__}",
        "constants": [[name, encode(value)] for name, value in template.constants],
    }


def template_from_json(data: Json, classes: Sequence[type]) -> Template | None:
    """Returns the template that ``template_to_json`` was given; classes come from the caller.

    Raises:
        CheckpointError: The JSON is damaged, or the caller did not give a class that it names.
    """
    if data is None:
        return None
    content = fields(data, "output template")
    children, constants = content.get("children"), content.get("constants")
    if not isinstance(children, list) or not isinstance(constants, list):
        raise CheckpointError("the saved output template is damaged")
    name = content.get("class")
    pairs = [pair for pair in constants if isinstance(pair, list) and len(pair) == 2]
    return Template(
        tuple(template_from_json(child, classes) for child in children),
        None if name is None else _class(str(name), classes),
        tuple((str(key), decode(value)) for key, value in pairs),
    )


def _class(name: str, classes: Sequence[type]) -> type[object]:
    for found in classes:
        if f"{found.__module__}:{found.__qualname__}" == name:
            return found
    raise CheckpointError(f"the model returns a {name}: give the class to load(..., classes=[...])")
