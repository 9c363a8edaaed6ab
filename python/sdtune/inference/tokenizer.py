"""The tokenizer of an export as OpenVINO models, which openvino_genai reads."""

from pathlib import Path

import openvino
from transformers import CLIPTokenizerFast


def export_tokenizer(tokenizer: CLIPTokenizerFast, added: list[str], target: Path) -> None:
    """Write ``openvino_tokenizer.xml`` and ``openvino_detokenizer.xml`` into ``target``.

    Args:
        tokenizer: with the tokens of the placeholder.
        added: those tokens; none where no token was learned.
        target: an existing folder.

    Raises:
        RuntimeError: the written tokenizer splits a prompt with the added tokens otherwise than ``tokenizer`` does.
    """
    from openvino_tokenizers import convert_tokenizer
    from openvino_tokenizers.utils import create_string_constant_node

    model, detokenizer = convert_tokenizer(tokenizer, with_detokenizer=True)
    # The converted BPE appends the end-of-word suffix to added tokens too, and then splits the suffix into letters. So
    # the added tokens get the suffix here as well. The last inputs of the operation are the added tokens' begins, ends,
    # characters and ids.
    bpe = next(op for op in model.get_ops() if op.get_type_name() == "BPETokenizer")
    last = bpe.get_input_size() - 1
    names = tokenizer.convert_ids_to_tokens(bpe.input_value(last).get_node().get_data().tolist())
    suffix = bpe.get_attributes()["end_suffix"]
    outputs = create_string_constant_node([name + suffix if name in added else name for name in names])
    for i, output in enumerate(outputs):
        bpe.input(last - len(outputs) + i).replace_source_output(output)
    openvino.save_model(model, target / "openvino_tokenizer.xml")
    openvino.save_model(detokenizer, target / "openvino_detokenizer.xml")
    words = added or ["toy"]
    text = f"a photo of a {' '.join(words)}, {words[0]} again"
    ids = openvino.compile_model(target / "openvino_tokenizer.xml", "CPU")([text])["input_ids"][0].tolist()
    if ids != tokenizer(text).input_ids:
        raise RuntimeError(f"the OpenVINO tokenizer splits {text!r} into {ids}, not {tokenizer(text).input_ids}")
