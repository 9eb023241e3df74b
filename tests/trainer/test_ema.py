"""The moving average of the masters, against the same recursion in fp64; and the schedule that cools down."""

import pytest
import torch

from trainer.optim import Ema, constant_with_cooldown, learning_rate


def masters(step: int) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(step)
    return [torch.randn(7, 3, generator=draws), torch.randn(5, generator=draws) * 1e-4, torch.zeros(0)]


def test_the_average_is_the_recursion_that_its_docstring_states() -> None:
    ema = Ema(masters(0), 0.95)
    expected = [master.double() for master in masters(0)]
    for step in range(1, 400):
        ema.update(masters(step))
        decay = min(0.95, step / (step + 9))
        expected = [
            decay * average + (1 - decay) * master.double()
            for average, master in zip(expected, masters(step), strict=True)
        ]
    assert ema.updates == 399
    for average, wanted in zip(ema.tensors, expected, strict=True):
        assert average.dtype == torch.float32
        torch.testing.assert_close(average.double(), wanted, rtol=1e-5, atol=1e-7)


def test_it_does_not_look_at_the_start_for_long_and_stays_where_the_masters_stay() -> None:
    ema = Ema([torch.full((4,), 1e6)], 0.9999)
    still = [torch.tensor([1.0, -0.3, 1e-8, 7.7e4])]
    for _ in range(300):
        ema.update(still)
    # The first weights weigh the product of n / (n + 9) up to 300: 2e-17. By the plain rule they would weigh 0.97.
    torch.testing.assert_close(ema.tensors[0], still[0], rtol=1e-5, atol=1e-6)
    settled = Ema(still, 0.9999)
    for _ in range(3000):
        settled.update(still)
    assert torch.equal(settled.tensors[0], still[0]), "3,000 updates with the same weights change nothing"


def test_bf16_masters_have_an_fp32_average() -> None:
    """Their updates are far below a step of bf16: an average in bf16 would never move."""
    ema = Ema([torch.ones(3, dtype=torch.bfloat16)], 0.999)
    ema.updates = 10**6
    for _ in range(100):
        ema.update([torch.full((3,), 1.0078125, dtype=torch.bfloat16)])
    assert float(ema.tensors[0][0]) == pytest.approx(1 + 0.0078125 * (1 - 0.999**100), abs=1e-6)


def test_shards_average_to_what_the_whole_averages_to() -> None:
    whole = Ema([torch.cat([master.reshape(-1) for master in masters(0)])], 0.9)
    parts = Ema(masters(0), 0.9)
    for step in range(1, 20):
        whole.update([torch.cat([master.reshape(-1) for master in masters(step)])])
        parts.update(masters(step))
    assert torch.equal(torch.cat([average.reshape(-1) for average in parts.tensors]), whole.tensors[0])


def test_its_state_is_its_tensors_and_a_count() -> None:
    straight = Ema(masters(0), 0.99)
    for step in range(1, 30):
        straight.update(masters(step))
    stopped = Ema(masters(0), 0.99)
    for step in range(1, 12):
        stopped.update(masters(step))
    resumed = Ema(masters(11), 0.99)
    resumed.restore([average.clone() for average in stopped.tensors], stopped.updates)
    for step in range(12, 30):
        resumed.update(masters(step))
    assert all(torch.equal(one, other) for one, other in zip(straight.tensors, resumed.tensors, strict=True))
    with pytest.raises(ValueError, match="an average of 20 numbers for a master of 21"):
        resumed.restore([torch.zeros(20), torch.zeros(5), torch.zeros(0)], 3)
    with pytest.raises(ValueError, match="decay must be between 0 and 1"):
        Ema(masters(0), 1.0)


def test_the_masters_are_copied_not_shared() -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    ema = Ema([weight], 0.9)
    weight.data.fill_(3.0)
    assert torch.equal(ema.tensors[0], torch.ones(4))
    assert not ema.tensors[0].requires_grad


def test_the_constant_schedule_warms_up_stays_and_cools_down() -> None:
    rates = [
        constant_with_cooldown(step, base_lr=2.0, warmup_steps=4, cooldown_steps=5, total_steps=20)
        for step in range(22)
    ]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert set(rates[3:16]) == {2.0}
    assert rates[15:] == pytest.approx([2.0, 1.6, 1.2, 0.8, 0.4, 0.0, 0.0])
    flat = [constant_with_cooldown(s, base_lr=2.0, warmup_steps=0, cooldown_steps=0, total_steps=3) for s in range(4)]
    assert flat == [2.0, 2.0, 2.0, 0.0]
    for step, warmup, cooldown in ((-1, 1, 1), (0, 15, 6), (0, -1, 2), (0, 1, -2)):
        with pytest.raises(ValueError, match="do not fit together"):
            constant_with_cooldown(step, base_lr=2.0, warmup_steps=warmup, cooldown_steps=cooldown, total_steps=20)


def test_the_schedule_is_chosen_by_name() -> None:
    shape = {"base_lr": 1.0, "warmup_steps": 2, "cooldown_steps": 4, "total_steps": 12}
    assert learning_rate(7, "constant", **shape) == 1.0  # type: ignore[arg-type]
    assert learning_rate(7, "cosine", **{**shape, "cooldown_steps": 0}) == pytest.approx(0.5)  # type: ignore[arg-type]
