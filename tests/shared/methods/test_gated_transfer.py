import copy
import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearning.config import as_plain, build
from unlearning.data.samples import Rows, TensorSamples
from unlearning.errors import UsageError
from unlearning.methods import Facts
from unlearning.methods.attention import attended_modules, attention_loss, attention_map, recorded
from unlearning.methods.gated_course import SIGNALS, Course, kd_loss, student_steps
from unlearning.methods.gated_transfer import PAPER, GatedTransferConfig, configure, distill
from unlearning.methods.pseudo_images import PseudoGenerator, balance, barrier, gate, gated_batch, without_classes
from unlearning.methods.record import DistillRecord
from unlearning.methods.task import Task
from unlearning.metrics.accuracy import accuracy
from unlearning.models import architectures
from unlearning.training import Recipe, build_seeded, generator, predict, train

torch.set_num_threads(1)

SHAPE, CLASSES = (1, 8, 8), 4
FACTS = Facts(retain_rows=0, retain_per_class=0, input_size=64, forget_classes=1)
QUICK: dict[str, Any] = {
    "cycles": 4,
    "monitor_every": 2,
    "student_steps": 2,
    "batch_size": 16,
    "generator_width": 8,
    "latent": 8,
    "threshold": 0.3,  # an untrained original gives each class about a quarter
}


class Untouchable:
    """Samples that must not be read."""

    @property
    def targets(self) -> Tensor:
        raise AssertionError("data was read")

    def __len__(self) -> int:
        raise AssertionError("data was read")

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("data was read")


def network(seed: int = 0, *, architecture: str = "allcnn", outputs: int = CLASSES) -> nn.Module:
    arguments = {"width": 0.08} if architecture == "allcnn" else {}
    return build_seeded(
        lambda: architectures.build(architecture, arguments, input_shape=SHAPE, outputs=outputs), seed
    ).eval()


def decided() -> nn.Module:
    """A network that says different things of different images: its statistics are those of noise, its logits large."""
    model = network().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(random(200, *SHAPE))
        model.get_submodule("classifier").weight.mul_(5)
    return model.eval()


def dropping(seed: int) -> nn.Module:
    """Draws from the global generator when it trains."""
    return build_seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(144, CLASSES)
        ),
        seed,
    )


def task(**more: Any) -> Task:
    forbidden = Untouchable()
    values: dict[str, Any] = {
        "input_shape": SHAPE,
        "outputs": CLASSES,
        "forget_classes": (2,),
        "blank": network,
        "forget": forbidden,
        "retain": forbidden,
        "calibration": forbidden,
    }
    return Task(**{**values, **more})


def quick(**more: object) -> GatedTransferConfig:
    return configure({**QUICK, **more}, FACTS)


def contents(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def random(*shape: int, purpose: str = "logits") -> Tensor:
    return torch.randn(shape, generator=generator(0, purpose))


def test_the_divergence_by_hand() -> None:
    # T = (3/4, 1/4), S = (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2), over 1 sample and 2 classes
    teacher, student = torch.tensor([[math.log(3), 0.0]]), torch.zeros((1, 2))
    assert kd_loss(student, teacher).item() == pytest.approx((0.75 * math.log(1.5) - 0.25 * math.log(2)) / 2)


def test_the_divergence_is_that_of_the_probabilities_sample_by_sample() -> None:
    student, teacher = random(5, 4), random(5, 4, purpose="teacher")
    T, S = F.softmax(teacher / 2, 1), F.softmax(student / 2, 1)
    slow = sum((T[i, c] * (T[i, c] / S[i, c]).log()).item() for i in range(5) for c in range(4)) / 20
    assert kd_loss(student, teacher, temperature=2.0).item() == pytest.approx(slow)
    assert kd_loss(teacher, teacher).item() == pytest.approx(0, abs=1e-9)


def test_extreme_logits_give_finite_losses_and_gradients_on_both_sides() -> None:
    extreme = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [0.0, 0.0, 1e4]])
    teacher = extreme.clone().requires_grad_()
    student = extreme.roll(1, 0).clone().requires_grad_()
    (kd_loss(student, teacher) + barrier(teacher, [0, 1], 1e-3) + balance(teacher, [0])).backward()
    for leaf in (teacher, student):
        assert leaf.grad is not None
        assert bool(leaf.grad.isfinite().all())
    assert math.isfinite(kd_loss(student, without_classes(teacher, [0])).item())


@pytest.mark.parametrize("student_batchnorm", ["train", "frozen_init"])
def test_steps_on_the_cached_batch_are_those_of_asking_generator_and_original_every_time(
    student_batchnorm: str,
) -> None:
    config = quick(student_steps=5, student_batchnorm=student_batchnorm, attention=20.0)
    teacher, made = decided(), build_seeded(lambda: PseudoGenerator(8, 8, SHAPE), 1)
    latents, layers = random(16, 8), attended_modules(network(), SHAPE)
    cached = network(7).train(student_batchnorm == "train")
    slow = copy.deepcopy(cached)
    with torch.no_grad():
        batch = gated_batch(teacher, made(latents), [2], threshold=config.threshold, layers=layers)
    assert 4 < len(batch) < 16
    optimiser = torch.optim.Adam(cached.parameters(), lr=1e-3)
    losses = student_steps(cached, batch, optimiser=optimiser, config=config, layers=layers)
    expected, slow_optimiser = [], torch.optim.Adam(slow.parameters(), lr=1e-3)
    for _ in range(5):
        with recorded(teacher, layers) as theirs, recorded(slow, layers) as ours:
            images = made(latents).detach()
            keep = gate(teacher(images), [2], config.threshold)
            T, S = teacher(images[keep]).detach(), slow(images[keep])
            maps = [[attention_map(outputs[name]) for name in layers] for outputs in (ours, theirs)]
        loss = F.kl_div(F.log_softmax(S, 1), F.softmax(T, 1), reduction="none").mean()
        loss = loss + 20.0 * attention_loss(maps[0], [one.detach() for one in maps[1]])
        slow_optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(slow.parameters(), 5.0)
        slow_optimiser.step()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, abs=1e-5)
    assert losses[-1] < losses[0]
    for name, tensor in slow.state_dict().items():
        assert torch.allclose(cached.state_dict()[name], tensor, atol=1e-5), name


def test_a_cycle_asks_the_original_and_the_generator_twice() -> None:
    asked = {"original": 0, "generator": 0}
    original = network()
    config = quick(cycles=3, monitor_every=10, threshold=0.999, student_steps=10)

    def count(name: str) -> Any:
        def hook(*_: object) -> None:
            asked[name] += 1

        return hook

    class Counting(PseudoGenerator):
        def forward(self, latents: Tensor) -> Tensor:
            asked["generator"] += 1
            return super().forward(latents)

    original.register_forward_hook(count("original"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unlearning.methods.gated_course.PseudoGenerator", Counting)
        at_end = {}
        distill(
            original,
            task(),
            config=config,
            generator=generator(0, "distill"),
            progress=lambda _, done, total, loss: at_end.setdefault(done, dict(asked)),
        )
    for name in asked:
        assert [at_end[done + 1][name] - at_end[done][name] for done in (1, 2)] == [2, 2]


def run(
    original: nn.Module | None = None, *, seed: int = 0, where: Task | None = None, **more: Any
) -> tuple[nn.Module, DistillRecord]:
    settings = {name: value for name, value in more.items() if name not in ("resume", "checkpoint", "progress")}
    rest = {name: value for name, value in more.items() if name not in settings}
    return distill(
        original or network(), where or task(), config=quick(**settings), generator=generator(seed, "distill"), **rest
    )


@pytest.mark.parametrize("variant", ["barrier", "paper"])
def test_a_new_network_comes_back_no_data_is_touched_and_the_original_stays_as_it_was(variant: str) -> None:
    original = network().train()
    before = contents(original)
    settings = {**QUICK, "variant": variant}
    student, record = distill(original, task(), config=configure(settings, FACTS), generator=generator(0, "distill"))
    assert contents(original) == before
    assert original.training
    assert all(weight.requires_grad and weight.grad is None for weight in original.parameters())
    assert contents(student) != before
    assert not any(module.training for module in student.modules())
    assert not any(module._forward_hooks for module in [*original.modules(), *student.modules()])
    assert record.histories["cycle"] == [2, 4]
    assert set(record.histories) == {
        "cycle", "student loss", "generator loss", "pass rate", "agreement", "classes", *SIGNALS
    }  # fmt: skip
    assert all(len(history) == 2 for history in record.histories.values())
    assert record.notes["stopped"] == "done"
    assert record.notes["cycles"] == record.notes["chosen_cycle"] == 4
    assert record.notes["attention"] == "8 maps"
    assert record.samples is not None
    assert record.samples.shape[1:] == SHAPE
    assert bool(gate(original.eval()(record.samples), [2], 0.3).all())


def test_the_same_seed_gives_the_same_bytes_whatever_the_global_generator_and_another_seed_others() -> None:
    where, original = task(blank=dropping), dropping(0)
    torch.manual_seed(1)
    first, record = run(original, where=where)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again, same = run(original, where=where)
    assert torch.equal(torch.get_rng_state(), state)
    assert contents(first) == contents(again) != contents(run(original, where=where, seed=1)[0])
    assert record.histories == same.histories


@pytest.mark.parametrize("schedule", ["cosine", "plateau"])
def test_a_killed_distillation_goes_on_to_the_same_bytes(schedule: str) -> None:
    where, kept = task(blank=dropping), []
    settings: dict[str, Any] = {"cycles": 6, "schedule": schedule, "where": where, "original": dropping(0)}
    whole, record = run(**settings)

    class KilledError(Exception):
        pass

    def keep(state: Mapping[str, Any]) -> None:
        kept.append(state)
        if len(kept) == 2:
            raise KilledError

    with pytest.raises(KilledError):
        run(**settings, checkpoint=keep)
    state = kept[-1]
    assert all(isinstance(value, Tensor | int | float) for value in state.values())
    untouched = {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}
    later: list[Mapping[str, Any]] = []
    resumed, same = run(**settings, seed=99, resume=state, checkpoint=later.append)
    assert contents(resumed) == contents(whole)
    assert same.histories == record.histories
    assert same.notes == record.notes
    assert same.samples is not None
    assert record.samples is not None
    assert torch.equal(same.samples, record.samples)
    assert [one["cycle"] for one in later] == [6]
    assert all(torch.equal(torch.as_tensor(untouched[name]), torch.as_tensor(state[name])) for name in state)


def test_a_finished_distillation_gives_its_student_again() -> None:
    kept: list[Mapping[str, Any]] = []
    student, record = run(checkpoint=kept.append)
    again, same = run(resume=kept[-1])
    assert contents(again) == contents(student)
    assert same.notes == record.notes


def test_a_checkpoint_of_another_distillation_is_refused_in_one_line() -> None:
    kept: list[Mapping[str, Any]] = []
    run(checkpoint=kept.append)
    wider = task(blank=lambda seed: network(seed, outputs=5))
    for broken in ({"where": wider}, {"cycles": 2}, {"generator_width": 16}):
        with pytest.raises(UsageError, match=r"this checkpoint is .*start without it") as caught:
            run(resume=kept[-1], **broken)
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="not of this distillation"):
        run(resume={"cycle": 2})


def test_a_generator_that_breaks_is_put_back_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    class Breaking(PseudoGenerator):
        def forward(self, latents: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if calls == 7:  # in the third cycle, after the first look: the weights themselves are lost
                with torch.no_grad():
                    next(self.parameters()).fill_(math.nan)
            return super().forward(latents)

    monkeypatch.setattr("unlearning.methods.gated_course.PseudoGenerator", Breaking)
    student, record = run(cycles=6, threshold=0.999)
    assert record.notes["restores"] == 1
    assert record.notes["stopped"] == "done"
    assert record.notes["chosen_cycle"] == 6
    assert all(bool(tensor.isfinite().all()) for tensor in student.state_dict().values())


def test_a_generator_of_which_nothing_passes_is_put_back_and_at_last_given_up() -> None:
    # nothing passes a gate this narrow, and without the barrier the generator never learns otherwise
    with pytest.raises(FloatingPointError, match=r"collapsed 2 times by cycle \d+; lower generator_learning_rate"):
        run(variant="paper", threshold=1e-9, cycles=60, monitor_every=50, empty_tries=10, restores=1, fill=1.0)


def test_what_was_kept_before_a_collapse_for_good_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = False

    def closing(logits: Tensor, forget_classes: Any, threshold: float) -> Tensor:
        return torch.zeros(len(logits), dtype=torch.bool) if closed else gate(logits, forget_classes, threshold)

    def close(state: Mapping[str, Any]) -> None:
        nonlocal closed
        closed = True

    for module in ("gated_course", "pseudo_images"):
        monkeypatch.setattr(f"unlearning.methods.{module}.gate", closing)
    _, record = run(cycles=30, threshold=0.999, empty_tries=5, restores=2, checkpoint=close)
    assert record.notes["stopped"] == "collapse"
    assert record.notes["chosen_cycle"] == 2
    assert record.notes["restores"] == 3


def test_a_thin_batch_is_topped_up_with_other_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def spying(student: nn.Module, batch: Any, **more: Any) -> list[float]:
        sizes.append(len(batch))
        return student_steps(student, batch, **more)

    monkeypatch.setattr("unlearning.methods.gated_course.student_steps", spying)
    _, record = run(decided(), cycles=6, monitor_every=6, fill=1.0, variant="paper", threshold=0.25)
    assert record.histories["pass rate"][0] < 1  # the gate did keep some out
    assert sizes == [16] * 6


def test_the_student_before_the_class_leaked_back_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    # what the looks find, in turn: high at first, low, low, then back for good
    found = iter([0.4] * 4 + [0.01] * 4 + [0.02] * 4 + [0.2] * 4 + [0.3] * 4 + [0.01] * 4)
    monkeypatch.setattr("unlearning.methods.gated_course.Course._forget_probability", lambda self, logits: next(found))
    states: dict[int, Mapping[str, Any]] = {}

    def keep(state: Mapping[str, Any]) -> None:
        states[state["cycle"]] = state

    student, record = run(cycles=12, patience=2, checkpoint=keep)
    assert (record.notes["stopped"], record.notes["chosen_cycle"], record.notes["cycles"]) == ("leak", 6, 10)
    assert record.notes["leak"] == pytest.approx(0.01)  # above its lowest
    chosen = student.state_dict()
    assert all(torch.equal(chosen[name], states[6][f"student.{name}"]) for name in chosen)
    assert not torch.equal(chosen["classifier.weight"], states[10]["student.classifier.weight"])


@pytest.mark.parametrize(
    ("found", "stopped", "chosen", "leak"),
    [
        ([0.2, 0.21, 0.22, 0.2, 0.23], "done", 10, 0.03),  # what it gives in ignorance, flat: no leak
        ([0.01, 0.03, 0.06, 0.12, 0.06], "leak", 4, 0.02),  # as likely as before, or less, but learned
        ([0.45, 0.4, 0.35, 0.35, 0.35], "done", 10, 0.1),  # above a guess among four from the start: the least
    ],
)
def test_a_leak_is_a_rise_above_what_the_student_gave_the_class_before_or_above_a_guess(
    found: list[float], stopped: str, chosen: int, leak: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([value for value in found for _ in SIGNALS])
    monkeypatch.setattr(
        "unlearning.methods.gated_course.Course._forget_probability", lambda self, logits: next(answers)
    )
    notes = run(cycles=10, patience=2)[1].notes
    assert (notes["stopped"], notes["chosen_cycle"]) == (stopped, chosen)
    assert notes["leak"] == pytest.approx(leak)


def test_the_probability_of_the_likeliest_forgotten_class_by_hand() -> None:
    course = Course(network(), task(forget_classes=(0, 2)), quick(), generator(0, "distill"))
    # means over both samples: class 0 (1/2 + 1/4) / 2, class 2 1/8; class 1 is not forgotten
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.25, 0.5, 0.125, 0.125]]).log()
    assert course._forget_probability(logits) == pytest.approx(0.375)


def test_frozen_batchnorm_stays_at_its_first_statistics_and_trained_batchnorm_does_not() -> None:
    for how, moved in (("frozen_init", False), ("train", True)):
        student, _ = run(student_batchnorm=how)
        means = [tensor for name, tensor in student.state_dict().items() if "running_mean" in name]
        assert len(means) == 8
        assert any(bool(mean.any()) for mean in means) == moved


def test_attention_is_off_and_said_so_where_there_are_no_maps_or_no_weight() -> None:
    _, perceptron = run(network(architecture="mlp"), where=task(blank=lambda seed: network(seed, architecture="mlp")))
    assert perceptron.notes["attention"] == "off: the network has no convolution blocks"
    assert run(attention=0.0)[1].notes["attention"] == "off: weight 0"


def test_a_generator_in_half_precision_gives_images_in_full_precision() -> None:
    student, record = run(generator_precision="bfloat16")
    assert record.samples is not None
    assert record.samples.dtype == torch.float32
    assert contents(student) != contents(run()[0])


def test_several_classes_are_forgotten_together() -> None:
    student, record = run(where=task(forget_classes=(0, 2)), threshold=0.3)
    assert not student.training
    assert record.samples is not None
    assert bool(gate(network()(record.samples), [0, 2], 0.3).all())


@pytest.mark.parametrize("forget", [(), (0, 1, 2), (0, 1, 2, 3)])
def test_a_request_without_classes_or_with_too_few_to_keep_is_refused(forget: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="classes to forget and at least two to keep"):
        run(where=task(forget_classes=forget))


def test_defaults_follow_the_size_of_an_input_and_the_variant_and_a_given_value_wins() -> None:
    assert (configure({}, FACTS).cycles, configure({}, FACTS).attention) == (400, pytest.approx(250 * 64 / 784))
    sized = {size: configure({}, dataclasses.replace(FACTS, input_size=size)) for size in (784, 3072, 150528)}
    assert {size: config.cycles for size, config in sized.items()} == {784: 400, 3072: 1567, 150528: 4000}
    assert {config.attention for config in sized.values()} == {250.0}
    paper = configure({"variant": "paper", "cycles": 9}, FACTS)
    assert (paper.cycles, paper.generator_width, paper.monitor_every) == (9, 128, 50)
    assert PAPER["attention"] == paper.attention == 250


def test_settings_go_through_json_and_all_mistakes_are_named_at_once() -> None:
    for config in (configure({}, FACTS), configure({"variant": "paper"}, FACTS)):
        assert build(GatedTransferConfig, json.loads(json.dumps(as_plain(config))), what="settings") == config
    with pytest.raises(UsageError, match=r'"cycle"; did you mean "cycles"'):
        configure({"cycle": 3}, FACTS)
    wrong = {"cycles": 0, "threshold": 1.0, "temperature": 0, "attention": -1, "fill": 0, "barrier_margin": 0.5}
    with pytest.raises(UsageError) as caught:
        configure(wrong, FACTS)
    for name in wrong:
        assert f"{name} must be" in str(caught.value)


@pytest.mark.slow
def test_classes_of_the_digits_are_forgotten_without_data_as_if_never_seen_and_the_others_are_kept() -> None:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    inputs = torch.tensor(pixels / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    samples = TensorSamples(inputs, torch.tensor(labels), mean=[0.305], std=[0.376])
    rows = torch.randperm(len(labels), generator=generator(0, "split"))
    seen, held_out, gone = Rows(samples, rows[:1400]), Rows(samples, rows[1400:]), torch.tensor([3, 5])

    def lenet(seed: int) -> nn.Module:
        return network(seed, architecture="lenet5", outputs=10)

    def trained(on: Rows) -> nn.Module:
        model = lenet(0)
        train(model, on, Recipe(epochs=20, learning_rate=0.005, batch_size=64), generator=generator(0, "train"))
        return model

    def accuracies(model: nn.Module) -> tuple[float, float]:
        forget = torch.isin(held_out.targets, gone)
        logits = predict(model, held_out)
        return accuracy(logits[forget], held_out.targets[forget]), accuracy(logits[~forget], held_out.targets[~forget])

    original = trained(seen)
    retrained = trained(Rows(samples, rows[:1400][~torch.isin(seen.targets, gone)]))
    student, record = distill(
        original,
        task(outputs=10, forget_classes=(3, 5), blank=lenet),
        config=configure({"cycles": 100, "batch_size": 128, "generator_width": 32}, FACTS),
        generator=generator(0, "distill"),
    )
    before, reference, after = accuracies(original), accuracies(retrained), accuracies(student)
    assert min(before) > 0.95
    assert reference[0] == 0
    assert after[0] <= 0.02
    assert after[1] >= 0.9 * reference[1]
    assert record.notes["stopped"] == "done"
    assert record.histories["agreement"][-1] > record.histories["agreement"][0]
