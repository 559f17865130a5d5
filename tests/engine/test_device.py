"""What a rank finds out about its GPU, without one: torch's answers are plain objects here."""

from types import SimpleNamespace

from train.engine.device import architecture, settled


def test_an_architecture_is_called_as_compilers_do():
    nvidia = SimpleNamespace(major=9, minor=0, gcnArchName="NVIDIA H100 80GB HBM3")
    amd = SimpleNamespace(major=9, minor=4, gcnArchName="gfx942:sramecc+:xnack-")
    assert (architecture(nvidia), architecture(amd)) == ("sm_90", "gfx942")


def test_memory_that_is_still_coming_back_is_waited_for():
    answers, pauses = iter([10, 40, 70, 70, 99]), []
    assert settled(lambda: next(answers), pauses.append) == 70
    assert pauses == [0.5] * 3
