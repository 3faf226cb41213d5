"""The dial: an adapter scaled is the base at 0, the pruned model at 1, and W + s (alpha / r) B A between, as PEFT merges it."""

import json

import pytest
import torch
from safetensors.torch import load_file

from o1core.cli import main

SMALL = "--rounds 1 --lora-rank 2 --lr 1e-2 --eval-samples 2 --problems 4 --samples 2 --picked 2 --max-new-tokens 12"


@pytest.fixture
def run(flags, tmp_path, capsys):
    assert main(["prune", *flags, *SMALL.split(), "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    return tmp_path / "run"


def dial(run, *words: str) -> int:
    return main(["dial", str(run), *words, "--device", "cpu", "--slots", "8"])


def test_a_runs_adapter_at_several_scales(run, checkpoint, capsys):
    assert dial(run, "--scales", "0.5", "1") == 0
    text = capsys.readouterr().out
    assert "The best of several scales on a test is optimistic" in text and (run / "dial" / "plot.png").exists()
    rows = json.loads((run / "dial" / "result.json").read_text())["rows"]
    result = json.loads((run / "result.json").read_text())
    assert [row["scale"] for row in rows] == [0, 0.5, 1]
    assert rows[0]["pruned"] == result["base"] and rows[2]["pruned"] == result["pruned"], "measured already: not again"
    assert rows[2]["paired"] == result["paired"] and rows[0]["accuracy_gain"] == 0
    assert [path.name for path in (run / "dial").glob("scale-*")] == ["scale-0.5"]
    before = {path: path.stat().st_mtime_ns for path in (run / "dial" / "scale-0.5").rglob("*")}
    assert dial(run, "--scales", "0.5") == 0
    assert {path: path.stat().st_mtime_ns for path in (run / "dial" / "scale-0.5").rglob("*")} == before, "resumed"
    assert main(["report", str(run)]) == 0
    assert "The dial: accuracy against length" in (run / "report.html").read_text()
    export(run, checkpoint, capsys)


def export(run, checkpoint, capsys) -> None:
    """The exported weights are PEFT's merge at half of its scale."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    assert dial(run, "--scale", "0.5") == 0
    folder = run / "dial" / "scale-0.5" / "checkpoint"
    assert str(folder) in capsys.readouterr().out
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32), run / "adapter"
    )
    for module in model.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling = {name: 0.5 * scale for name, scale in module.scaling.items()}
    wanted = model.merge_and_unload().state_dict()
    for name, tensor in load_file(folder / "model.safetensors").items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-6)
    assert "| scale of the adapter | 0.5 |" in (folder / "README.md").read_text()


def test_what_cannot_be_dialled(run, tmp_path, capsys):
    for words, message in (
        (["--scales", "half"], "half is not a number from 0 (the base) over 1 (as trained) to 10"),
        (["--scales", "nan"], "nan is not a number"),
        (["--scale", "-1"], "-1 is not a number"),
        (["--samples", "5"], "holds a run with other settings (samples: 2 there, 5 requested)"),
    ):
        with pytest.raises(SystemExit) if "number" in message else pytest.MonkeyPatch.context():
            assert dial(run, *words) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    weights = run / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert dial(run, "--scales", "2") == 2 and "adapter_model.safetensors: cannot be read" in capsys.readouterr().err
    weights.unlink()
    (run / "adapter" / "adapter_config.json").unlink()
    (run / "adapter" / "README.md").unlink()
    (run / "adapter").rmdir()
    assert dial(run) == 2 and "has no adapter to scale; `o1core prune --lora-rank 32" in capsys.readouterr().err
    assert dial(tmp_path) == 2 and "holds no settings.json; name the folder" in capsys.readouterr().err
