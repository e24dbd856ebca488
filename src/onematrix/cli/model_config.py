"""hf:config.json: a model of the transformers library with random weights, from its configuration alone."""

from pathlib import Path
from typing import Any

from onematrix.cli.model_inputs import Example
from onematrix.errors import ConversionError, FormatError, OneMatrixError
from onematrix.records.files import read_json

LARGEST = 2_000_000_000  # bytes of a model that is made with numbers
TOKENS = 16  # length of the example sequence; the program's stays free
IMAGE = 224  # pixels of a side where a configuration names none


def model_of_config(path: str | Path, batch: int = 2, meta: bool = False) -> Example:
    """The model a config.json describes, random weights, with example inputs of its main input.

    path: the file, or the folder it is in. meta: without numbers, on the meta device, as models above 2 GB are.
    The class is looked up in the library's own table by the file's "architectures"; nothing in the file is run.
    Raises FormatError for a file that is no configuration, OneMatrixError where the library is missing,
    ConversionError for a main input nothing is known about.
    """
    config = read_config(Path(path))
    model = _build(config, meta)
    return Example(model, (), example_inputs(model, config, batch))


def read_config(path: Path) -> Any:
    """The configuration of a file or folder, set to run without caches."""
    transformers = _library()
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise FormatError(f"{file}: there is no such file; hf: needs the config.json of a transformers model")
    held = read_json(file)
    if not isinstance(held, dict) or "model_type" not in held:
        raise FormatError(
            f'{file}: a "model_type" was needed, as in every config.json of transformers; got none'
        )
    if "auto_map" in held:
        raise FormatError(
            f'{file}: "auto_map" names code of its own, which is never run; use a type of the library'
        )
    kind = held.pop("model_type")
    try:
        config = transformers.AutoConfig.for_model(kind, **held)
    except (ValueError, TypeError) as error:
        raise FormatError(f"{file}: no model of transformers: {str(error).splitlines()[0]}") from error
    config.use_cache = False
    if hasattr(config, "_experts_implementation"):
        config._experts_implementation = "eager"  # the others are kernels of their own
    return config


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise OneMatrixError('hf: needs transformers: pip install "onematrix[models]"') from error
    transformers.logging.set_verbosity_error()
    return transformers


def _build(config: Any, meta: bool) -> Any:
    """The model, without numbers where it would be large; a class that cannot be made so is made with numbers."""
    import torch

    make = model_class(config)
    try:
        with torch.device("meta"):
            model = make(config)
    except (RuntimeError, NotImplementedError) as error:
        if meta:
            raise ConversionError(
                f"{make.__name__}: cannot be made on the meta device ({error}); leave out --meta"
            ) from error
    else:
        if meta or sum(t.numel() * t.element_size() for t in model.parameters()) > LARGEST:
            return model.eval()
    return make(config).eval()


def model_class(config: Any) -> Any:
    """The class "architectures" names, if it is one of the library for this type; else the usual one.

    Raises FormatError for any other name.
    """
    from transformers.models.auto import modeling_auto as tables

    library, kind = _library(), config.model_type
    usual = (tables.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, tables.MODEL_MAPPING_NAMES)
    known = [name for table in usual for name in [table.get(kind)] if isinstance(name, str)]
    wanted = (getattr(config, "architectures", None) or known or [""])[0]
    found = getattr(library, wanted, None) if wanted.isidentifier() else None
    right = isinstance(found, type) and issubclass(found, library.PreTrainedModel)
    if not right or found.config_class is not type(config):
        raise FormatError(
            f"config: {wanted!r} is no model of transformers for {kind!r}; there are: {', '.join(known)}, …"
        )
    return found


def example_inputs(model: Any, config: Any, batch: int) -> dict[str, Any]:
    """Zeros for the main input (tokens, pixels, a series), and for the decoder of a model that has both."""
    import torch

    name = getattr(model, "main_input_name", "input_ids")
    device = next(model.parameters()).device
    length = min(TOKENS, _fact(config, "max_position_embeddings", "n_positions") or TOKENS)
    tokens = torch.zeros(batch, length, dtype=torch.long, device=device)
    if name == "input_ids":
        found = {name: tokens}
    elif name == "pixel_values":
        side = _fact(config, "image_size") or IMAGE
        sides = tuple(side) if isinstance(side, list | tuple) else (side, side)
        found = {name: torch.zeros(batch, _fact(config, "num_channels") or 3, *sides, device=device)}
    elif name == "past_values" and (time := _fact(config, "context_length")):
        channels = _fact(config, "num_input_channels") or 1
        found = {name: torch.zeros(batch, time, channels, device=device)}
    elif name == "input_features" and (bands := _fact(config, "num_mel_bins")):
        time = 2 * (_fact(config, "max_source_positions") or TOKENS)
        found = {name: torch.zeros(batch, bands, time, device=device)}
    else:
        raise ConversionError(
            f"{type(model).__name__}: no example of its main input {name!r} is known; "
            f"give it, as in --input {name}=16,8"
        )
    both = getattr(config, "is_encoder_decoder", False) and name != "past_values"
    return found | ({"decoder_input_ids": tokens[:, : max(1, length // 2)]} if both else {})


def _fact(config: Any, *names: str) -> Any:
    """The first of these entries the configuration has, its text or vision part included."""
    inner = [getattr(config, part, None) for part in ("text_config", "vision_config")]
    places = [config, *(c for c in inner if c is not None)]
    return next((v for c in places for n in names if (v := getattr(c, n, None)) is not None), None)
