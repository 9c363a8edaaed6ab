"""textual_inversion.py as a user types it, with flags instead of a job file."""

import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from sdtune.training.metrics import read_metrics

PYTHON = Path(__file__).parents[1]


def test_flags_a_prompt_and_a_tracker(untrained_model, pictures, tmp_path):
    """In bf16, and where SciPy and scikit-learn are blocked, pictures are drawn and TensorBoard files written."""
    out = tmp_path / "run"
    command = [
        *(
            sys.executable,
            str(PYTHON / "textual_inversion.py"),
            "--pretrained_model_name_or_path",
            str(untrained_model),
        ),
        *("--train_data_dir", str(pictures), "--output_dir", str(out), "--resolution", "32"),
        *("--max_train_steps", "2", "--train_batch_size", "2", "--mixed_precision", "bf16"),
        *("--placeholder_token", "<dicoo>", "--initializer_token", "toy"),
        *("--validation_prompt", "a photo of <dicoo>", "--validation_steps", "2", "--num_validation_images", "2"),
    ]
    done = subprocess.run(
        command, env=dict(os.environ), capture_output=True, text=True, check=False, timeout=900, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert (out / "learned_embeds.safetensors").is_file()
    assert [m["step"] for m in read_metrics(out / "metrics.jsonl") if m["kind"] == "validation"] == [0, 2]
    for name in ("step-000000.png", "step-000002.png"):
        with Image.open(out / "validation" / name) as sheet:
            assert sheet.width >= 2 * 32
    assert list(out.glob("tensorboard/**/events.*"))


def test_nobody_is_told(tmp_path):
    """OpenVINO and NNCF leave no counter of uses in the home, as they do where they report to their makers."""
    use = (
        "import torch, openvino, nncf;"
        "nncf.compress_weights(openvino.convert_model(torch.nn.Linear(64, 64), example_input=torch.ones(1, 64)))"
    )
    for program, left in ((use, {"intel"}), (f"import sdtune.cli; {use}", set())):
        home = tmp_path / str(len(left))
        home.mkdir()
        # the reporting spares what it takes for CI by these three
        environment = os.environ | {"HOME": str(home), "PYTHONPATH": str(PYTHON)}
        environment |= dict.fromkeys(("CI", "TF_BUILD", "JENKINS_URL"), "")
        subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=300, cwd=tmp_path)
        assert {path.name for path in home.iterdir()} == left
