import torch

from train.engine.lora import DropoutContext, HashDropout


def dropped(names: DropoutContext, module: int = 0, seed: int = 0, p: float = 0.25) -> torch.Tensor:
    layer = HashDropout(p, seed, module, names)
    return layer(torch.ones(1, len(names.samples), 512))[0]


def names(samples, positions, step=3) -> DropoutContext:
    context = DropoutContext()
    context.set_tokens(step, torch.tensor(samples), torch.tensor(positions))
    return context


def test_a_token_is_dropped_alike_wherever_it_stands():
    one = dropped(names([7, 7, 9], [0, 1, 0]))
    other = dropped(names([9, 5, 7, 7], [0, 0, 0, 1]))
    assert torch.equal(one, other[[2, 3, 0]])


def test_step_module_seed_sample_and_position_each_change_the_draw():
    base = dropped(names([7], [2]))
    others = [
        dropped(names([7], [2], step=4)),
        dropped(names([7], [2]), module=1),
        dropped(names([7], [2]), seed=1),
        dropped(names([8], [2])),
        dropped(names([7], [3])),
    ]
    assert all(not torch.equal(base, other) for other in others)


def test_the_share_kept_is_the_one_asked_for_and_the_mean_is_kept():
    many = dropped(names(list(range(400)), [0] * 400))
    assert abs(float((many > 0).float().mean()) - 0.75) < 0.005
    assert abs(float(many.mean()) - 1) < 0.01
    assert abs(float(torch.corrcoef(many[:2])[0, 1])) < 0.2


def test_nothing_is_dropped_in_evaluation():
    layer = HashDropout(0.5, 0, 0, names([1], [0])).eval()
    assert torch.equal(layer(torch.ones(1, 1, 8)), torch.ones(1, 1, 8))
