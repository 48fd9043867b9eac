"""Names: what clients ask for, and the model or adapter that is served under it."""

from __future__ import annotations

from collections.abc import Mapping

from serving.errors import ModelNotFound
from serving.gateway.fleet.fleet import Fleet, Model
from serving.wire import PromptFormat

#: Characters of a client's name that an error repeats.
NAME_CHARS_MAX = 256


class Names:
    """Aliases over the fleet's own names."""

    def __init__(self, fleet: Fleet, aliases: Mapping[str, str]) -> None:
        self._fleet = fleet
        self._aliases = aliases

    def resolve(self, requested: str) -> str:
        """The served name behind what a client asks for; raises ModelNotFound when no source serves it."""
        model = self._aliases.get(requested, requested)
        if not self._fleet.may_know(model):
            raise ModelNotFound(requested[:NAME_CHARS_MAX])
        return model

    def base_of(self, model: str) -> str | None:
        """The model that a served adapter belongs to; None for a model itself."""
        base = self._fleet.base_of(model)
        return None if base == model else base

    def served(self) -> dict[str, Model]:
        """Every name a client may ask for → what is behind it."""
        models = {model.name: model for model in (*self._fleet.adapters(), *self._fleet.models())}
        return models | {alias: models[name] for alias, name in self._aliases.items() if name in models}

    def prompt_format(self, model: str) -> PromptFormat | None:
        """How a served model's conversations become prompts, where a directory says so."""
        return self._fleet.prompt_format(model)

    def default_output_tokens(self, model: str) -> int:
        """Output tokens of a call to a served model that sets no limit of its own; 0 where there is no default."""
        return self._fleet.default_output_tokens(model)
