"""HalfAdamW against torch's AdamW in fp32, its bytes, its resume, and the traps that ZeRO lays for an optimizer's state."""

import copy
import io
import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trainer.models import Preset, ViTShape, build
from trainer.objectives.clip import contrastive_loss
from trainer.optim import HalfAdamW, cosine_with_warmup, parameter_groups
from trainer.optim.blocks import dequantise, quantise
from trainer.optim.rounding import moment_noise, random_bits

SETTINGS = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.2}


def half_adamw(params: list[Tensor], max_value: float | None = None) -> HalfAdamW:
    return HalfAdamW(params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.2, max_value=max_value)


def noisy_gradients(n: int, steps: int, size: float = 1.0, seed: int = 0) -> Iterator[Tensor]:
    """A mean and a spread of its own for each number, over five orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    spread = 10 ** (torch.rand(n, generator=generator) * 5 - 4)
    mean = torch.randn(n, generator=generator)
    for _ in range(steps):
        yield (mean + torch.randn(n, generator=generator)) * spread * size


@pytest.mark.parametrize(("beta2", "size"), [(0.999, 1.0), (0.98, 1.0), (0.999, 1e-5), (0.999, 1e-9)])
def test_stays_close_to_fp32_adamw(beta2: float, size: float) -> None:
    """300 steps: the way that each weight went differs by at most 1 % (root mean square) and is not biased by 0.1 %."""
    n, eps = 5000, 1e-8 * size
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, n)) for _ in range(2))
    start = ours.detach().clone()
    half = HalfAdamW([ours], lr=1e-3, betas=(0.9, beta2), eps=eps, weight_decay=0.2)
    full = torch.optim.AdamW([theirs], lr=1e-3, betas=(0.9, beta2), eps=eps, weight_decay=0.2)
    for gradient in noisy_gradients(n, 300, size):
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        half.step()
        full.step()
    travelled = (theirs.detach() - start).square().mean().sqrt()
    error = (ours.detach() - theirs.detach()).square().mean().sqrt()
    assert travelled > 0.05
    assert error / travelled < 0.01
    state, other = half.state[ours], full.state[theirs]
    root = dequantise(state["root"], state["root_scale"], 256)
    ratio = root / other["exp_avg_sq"].sqrt()
    assert abs(float(ratio.mean()) - 1) < 1e-3


def test_the_second_moment_does_not_freeze_at_beta2_of_0999() -> None:
    """A gradient that falls to a half: rounding to nearest would leave the fp16 root far above the true one."""
    weight = nn.Parameter(torch.zeros(4096))
    optimizer = half_adamw([weight])
    true = 0.0
    for step in range(2000):
        size = 1.0 if step < 1000 else 0.5
        weight.grad = torch.full((4096,), size)
        optimizer.step()
        true = 0.999 * true + 0.001 * size**2
    state = optimizer.state[weight]
    root = dequantise(state["root"], state["root_scale"], 256)
    assert float(root.mean()) == pytest.approx(math.sqrt(true), rel=1e-3)
    assert float((root / math.sqrt(true) - 1).abs().max()) < 0.05


def test_moments_take_at_most_4_1_bytes_a_parameter() -> None:
    model = build("tiny-vit")
    optimizer = HalfAdamW(parameter_groups(model, 0.2))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert optimizer.state_bytes() / count < 4.1
    again = HalfAdamW(parameter_groups(model, 0.2))
    again.load_state_dict(optimizer.state_dict())
    assert again.state_bytes() == optimizer.state_bytes()


def three_weights() -> list[nn.Parameter]:
    torch.manual_seed(4)
    return [nn.Parameter(torch.randn(size)) for size in (1000, 1, 513)]


def take_steps(optimizer: HalfAdamW, weights: list[nn.Parameter], start: int, stop: int) -> None:
    for step in range(start, stop):
        for place, weight in enumerate(weights):
            generator = torch.Generator().manual_seed(100 * step + place)
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()


def test_a_resumed_run_is_the_same_run_to_the_bit() -> None:
    weights = three_weights()
    optimizer = half_adamw(list(weights))
    take_steps(optimizer, weights, 0, 20)
    file = io.BytesIO()
    torch.save({"weights": [weight.detach() for weight in weights], "optimizer": optimizer.state_dict()}, file)
    take_steps(optimizer, weights, 20, 40)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed = [nn.Parameter(weight) for weight in saved["weights"]]
    other = half_adamw(list(resumed))
    other.load_state_dict(saved["optimizer"])
    for number, weight in enumerate(resumed):
        for key, value in saved["optimizer"]["state"][number].items():
            found = other.state[weight][key]
            assert found == value if key == "step" else torch.equal(found, value) and found.dtype == value.dtype
    take_steps(other, resumed, 20, 40)
    for first, second in zip(weights, resumed, strict=True):
        assert torch.equal(first, second)
        for key in ("moment", "root", "moment_scale", "root_scale"):
            assert torch.equal(optimizer.state[first][key], other.state[second][key])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_plain_moments_from_elsewhere_are_quantised_not_widened(dtype: torch.dtype) -> None:
    """A checkpoint of torch's AdamW continues: its fp32 moments become fp16 at the next step, near enough."""
    first, second = (nn.Parameter(torch.linspace(-1, 1, 700)) for _ in range(2))
    full = torch.optim.AdamW([first], lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.2)
    half = half_adamw([second])
    gradients = list(noisy_gradients(700, 60))
    for gradient in gradients[:30]:
        first.grad = gradient
        full.step()
    second.data.copy_(first.data)
    saved = copy.deepcopy(full.state_dict())
    for key in ("exp_avg", "exp_avg_sq"):
        saved["state"][0][key] = saved["state"][0][key].to(dtype)
    saved["param_groups"] = half.state_dict()["param_groups"]
    half.load_state_dict(saved)
    before = second.detach().clone()
    for gradient in gradients[30:]:
        first.grad, second.grad = gradient.clone(), gradient.clone()
        full.step()
        half.step()
    state = half.state[second]
    assert set(state) == {"step", "moment", "moment_scale", "root", "root_scale"}
    assert state["step"] == 60
    assert state["moment"].dtype == state["root"].dtype == torch.float16
    travelled = (first.detach() - before).norm()
    assert (first.detach() - second.detach()).norm() / travelled < (0.05 if dtype == torch.bfloat16 else 0.01)


def test_a_state_of_another_size_is_refused() -> None:
    small, large = nn.Parameter(torch.zeros(10)), nn.Parameter(torch.zeros(20))
    small.grad = torch.ones(10)
    optimizer = half_adamw([small])
    optimizer.step()
    with pytest.raises(ValueError, match="has 10 numbers, the parameter 20"):
        half_adamw([large]).load_state_dict(optimizer.state_dict())


def test_zero_gradients_empty_partitions_and_missing_gradients_are_safe() -> None:
    empty, still, absent = (nn.Parameter(torch.ones(size)) for size in (0, 300, 5))
    optimizer = HalfAdamW([empty, still, absent], lr=0.1, weight_decay=0.0)
    for _ in range(3):
        empty.grad, still.grad = torch.zeros(0), torch.zeros(300)
        optimizer.step()
    assert torch.equal(still.detach(), torch.ones(300))
    assert absent not in optimizer.state
    again = HalfAdamW([empty, still, absent], lr=0.1, weight_decay=0.0)
    again.load_state_dict(optimizer.state_dict())
    assert again.state[empty]["moment"].dtype == torch.float16


def test_shapes_layouts_dtypes_and_chunks_do_not_matter() -> None:
    """A picture-shaped weight in another memory format, and one longer than a chunk, move as their flat copies."""
    torch.manual_seed(5)
    values, gradient = torch.randn(8, 4, 3, 3), torch.randn(8, 4, 3, 3)
    flat, shaped = nn.Parameter(values.reshape(-1).clone()), nn.Parameter(values.to(memory_format=torch.channels_last))
    flat.grad, shaped.grad = gradient.reshape(-1), gradient.to(memory_format=torch.channels_last)
    half_adamw([flat]).step()
    half_adamw([shaped]).step()
    assert torch.equal(flat.detach().view(8, 4, 3, 3), shaped.detach())
    long = nn.Parameter(torch.ones((1 << 20) + 100))
    long.grad = torch.ones_like(long)
    half_adamw([long]).step()
    torch.testing.assert_close(long.detach(), torch.full_like(long, 1 - 2e-4 - 1e-3))
    narrow = nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    narrow.grad = torch.ones_like(narrow)
    half_adamw([narrow], max_value=0.5).step()
    assert torch.equal(narrow.detach(), torch.full_like(narrow, 0.5))


def test_the_bound_of_a_group_holds_and_lets_go() -> None:
    scale = nn.Parameter(torch.tensor([math.log(100) - 1e-4]))
    optimizer = HalfAdamW([{"params": [scale], "max_value": math.log(100), "weight_decay": 0.0}], lr=0.01)
    for _ in range(5):
        scale.grad = torch.tensor([-1.0])
        optimizer.step()
    assert float(scale.detach()) == pytest.approx(math.log(100), abs=1e-6)
    for _ in range(60):
        scale.grad = torch.tensor([1.0])
        optimizer.step()
    assert float(scale.detach()) < math.log(100) - 0.01


def test_a_closure_is_called_with_gradients() -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    optimizer = half_adamw([weight])

    def closure() -> float:
        loss = weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    assert optimizer.step(closure) == 4.0
    assert float(weight.detach()) < 2.0


@pytest.mark.parametrize("changes", [{"lr": -1.0}, {"eps": 0.0}, {"betas": (0.9, 1.0)}, {"block_size": 100}])
def test_settings_out_of_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"out of range|power of two"):
        HalfAdamW([torch.zeros(1)], **{**SETTINGS, **changes})  # type: ignore[arg-type]


@given(st.lists(st.floats(-(2.0**120), 2.0**120, width=32), max_size=70), st.sampled_from([1, 16, 64]))
@settings(max_examples=200, deadline=None)
def test_quantising_keeps_eleven_bits_and_a_second_time_changes_nothing(numbers: list[float], block: int) -> None:
    values = torch.tensor(numbers, dtype=torch.float32)
    half, scales = quantise(values, block)
    back = dequantise(half, scales, block)
    for start in range(0, len(numbers), block):
        piece = values[start : start + block]
        # Half a unit of the last kept bit, or of fp16's smallest step below the block's largest number, or fp32's own floor.
        limit = (piece.abs() * 2.0**-11).clamp(min=float(piece.abs().max()) * 2.0**-39).clamp(min=2.0**-138)
        assert bool(((back[start : start + block] - piece).abs() <= limit).all())
    again, same = quantise(back, block)
    torch.testing.assert_close(dequantise(again, same, block), back, rtol=0, atol=0)


def noise_of(seed: int, step: int, first: int, count: int, device: torch.device) -> Tensor:
    return moment_noise(random_bits(seed, step, [(first, count)], device))


def test_rounding_is_unbiased_and_a_function_of_seed_step_and_offset() -> None:
    # 1 + 0.3 units of fp16's last bit beside a 1 that fixes the block's scale.
    n, unit = 1 << 20, 2.0**-10
    values = torch.full((n,), 1 + 0.3 * unit)
    noise = noise_of(3, 7, 0, n, torch.device("cpu"))
    half, scales = quantise(values, 256, noise)
    ups = (dequantise(half, scales, 256) - 1) / unit
    assert set(ups.tolist()) == {0.0, 1.0}
    assert abs(float(ups.double().mean()) - 0.3) < 2e-3
    assert int(noise.min()) == 0
    assert int(noise.max()) == 8191
    assert torch.equal(noise[1000:1500], noise_of(3, 7, 1000, 500, torch.device("cpu")))
    for other in (noise_of(4, 7, 0, n, noise.device), noise_of(3, 8, 0, n, noise.device)):
        together = torch.stack([noise, other]).double()
        assert abs(float(torch.corrcoef(together)[0, 1])) < 5e-3
    neighbours = torch.stack([noise[1:], noise[:-1]]).double()
    assert abs(float(torch.corrcoef(neighbours)[0, 1])) < 5e-3


def test_not_a_number_and_infinity_stay_visible() -> None:
    values = torch.tensor([1.0, math.nan, -math.inf, 2.0])
    noise = noise_of(0, 0, 0, 4, torch.device("cpu"))
    for half, scales in (quantise(values, 4), quantise(values, 4, noise)):
        back = dequantise(half, scales, 4)
        assert back.isfinite().tolist()[1:3] == [False, False]


@pytest.mark.parametrize("name", ["tiny-vit", "tiny"])
def test_everything_but_gains_and_biases_decays(name: str) -> None:
    model = build(name)
    groups = {group["name"]: group for group in parameter_groups(model, 0.2)}
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    sorted_out = {key: {names[id(parameter)] for parameter in group["params"]} for key, group in groups.items()}
    assert set().union(*sorted_out.values()) == set(names.values())
    assert sorted_out["logit_scale"] == {"logit_scale"}
    # One dimension is a gain or a bias, except for the class token.
    one = {key for key, parameter in model.named_parameters() if parameter.ndim == 1}
    assert sorted_out["no_decay"] == one - {"logit_scale", "visual.class_embedding"}
    assert groups["decay"]["weight_decay"] == 0.2
    assert groups["no_decay"]["weight_decay"] == groups["logit_scale"]["weight_decay"] == 0.0
    assert groups["logit_scale"]["max_value"] == pytest.approx(math.log(100))
    assert groups["decay"]["max_value"] is None
    for parameter in model.visual.parameters():
        parameter.requires_grad_(False)
    locked = parameter_groups(model, 0.2)
    assert not any(names[id(parameter)].startswith("visual") for group in locked for parameter in group["params"])


def test_the_schedule_warms_up_and_falls_along_half_a_cosine() -> None:
    rates = [cosine_with_warmup(step, base_lr=2.0, warmup_steps=4, total_steps=12) for step in range(13)]
    assert rates[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates[8] == pytest.approx(1.0)
    assert rates[6] == pytest.approx(2.0 * 0.5 * (1 + math.sqrt(0.5)))
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[4:]))
    assert rates[12] == 0.0
    assert cosine_with_warmup(50, base_lr=2.0, warmup_steps=4, total_steps=12) == 0.0
    assert cosine_with_warmup(0, base_lr=2.0, warmup_steps=0, total_steps=1) == 2.0
    for step, warmup in ((-1, 4), (0, 13)):
        with pytest.raises(ValueError, match="do not fit together"):
            cosine_with_warmup(step, base_lr=2.0, warmup_steps=warmup, total_steps=12)


def final_loss(make: Callable[[nn.Module], torch.optim.Optimizer], steps: int) -> float:
    """The mean loss of the last tenth of a small CLIP's training on noisy pictures of 64 things with a caption each."""
    shape = Preset("proxy", 64, 32, ViTShape(1, 64, 16), 64, 1, 1e-3, (0.9, 0.98), 1e-6, 8, 80)
    torch.manual_seed(0)
    model = build(shape)
    optimizer = make(model)
    things, captions = torch.randn(64, 3, 32, 32), torch.randint(1, 79, (64, 8))
    captions[:, -1] = 79
    draws = torch.Generator().manual_seed(1)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine_with_warmup(step, base_lr=1e-3, warmup_steps=steps // 20, total_steps=steps)
        chosen = torch.randint(0, 64, (24,), generator=draws)
        pixels = things[chosen] + 3 * torch.randn(24, 3, 32, 32, generator=draws)
        loss = contrastive_loss(*model(pixels, captions[chosen]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    return sum(losses[-steps // 10 :]) / (steps // 10)


@pytest.mark.prove
@pytest.mark.timeout(900)
def test_two_thousand_steps_end_within_half_a_percent_of_fp32_adamw() -> None:
    """Both see the same batches; things drawn twice into a batch keep the loss well above zero."""
    common = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
    half = final_loss(lambda model: HalfAdamW(parameter_groups(model, 0.2), **common), 2000)  # type: ignore[arg-type]
    full = final_loss(lambda model: plain_adamw(model, common), 2000)
    assert half == pytest.approx(full, rel=5e-3)


def plain_adamw(model: nn.Module, common: dict[str, object]) -> torch.optim.AdamW:
    groups = [{"params": g["params"], "weight_decay": g["weight_decay"]} for g in parameter_groups(model, 0.2)]
    return torch.optim.AdamW(groups, **common)  # type: ignore[arg-type]
