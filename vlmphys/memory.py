"""How many bytes a training run takes, and where: each formula once, from counts and sizes alone. No torch here, no look at a machine.

What engine and optimizer allocate is exact up to alignment. What is an estimate says so: the passes' temporary tensors, the libraries' own
memory, the slack of the device's allocator, the gathered weights of ZeRO-3 and FSDP. `a` is the bytes of a number in the forward pass: 2
with bf16, else 4. T are trained parameters, P all of them without the image tower, N ranks. What the formulas are about is in `cases`.
"""

from __future__ import annotations

from vlmphys.cases import GIB, Case

# Python, torch, transformers and what a first step adds (threads, compiled kernels), and DeepSpeed beside it, in one process: measured with
# torch 2.13 for the CPU.
LIBRARIES_CPU, DEEPSPEED = 560 << 20, 75 << 20
# The same with CUDA, whose kernels are mapped into host memory too: an estimate, not measured.
LIBRARIES_CUDA = 3 * GIB
# CUDA's context, cuBLAS and NCCL on the device: an estimate, not measured.
CONTEXT_CUDA = 1 * GIB
# What torch's allocator holds beyond what is in use, because blocks do not fit each other: an estimate, not measured.
ALLOCATOR_SLACK = 0.05
# The same of the C library's heap, beyond activations, measured on the tiny model at seven settings (within 8 % with it).
HEAP_SLACK = 0.15
SLACK, CONTEXT = "allocator's slack", "CUDA context"
# NF4 with twice quantised scales, bytes a weight: 4 bits, a byte for each 64 weights, and an fp32 number for each 256 of those.
FOUR_BITS = 0.5 + 1 / 64 + 4 / (64 * 256)
CHECKPOINT_SHARD = 2 * GIB      # checkpoint.SHARD_BYTES


def pinned_bytes(size: float) -> int:
    """What a page-locked buffer of `size` bytes takes: torch's pinning allocator rounds up to a power of two."""
    return 1 << (max(1, int(size)) - 1).bit_length()


def weight_bytes(case: Case) -> int:
    """Weights that stay: a x P; P/N of them under ZeRO-3, none there where they are offloaded.

    With torch alone the trained ones are fp32 masters, and autocast keeps a bf16 copy of each until the backward pass is over. FSDP: the
    same masters and frozen weights, divided by N.
    """
    trained = case.size.trained
    if case.sharding.fsdp:
        return (case.a * (case.total - trained) + 4 * trained) // case.ranks
    if case.packed:
        return case.a * (case.total - case.packed) + int(FOUR_BITS * case.packed)
    if case.sharding.stage == 0:
        return case.a * (case.total - trained) + 4 * trained + (2 * trained if case.config.bf16 else 0)
    if case.sharding.stage == 3:
        return int(case.a * case.total / case.ranks) if case.sharding.parameters_on == "device" else 0
    return case.a * case.total


def gathered_bytes(case: Case) -> int:
    """Whole copies of weights that are in use: an estimate.

    ZeRO-3: at most what the JSON lets live. FSDP: all that is no block of tower or language model, for the whole pass, and three blocks:
    the one in use, the next one, and its message. 4 bits: one layer's weights as they are multiplied.
    """
    if case.sharding.fsdp:
        blocks = case.layer * case.size.layers + case.tower
        return case.a * (max(0, case.total - blocks) + 3 * case.layer)
    if case.packed:
        return case.a * case.size.hidden * case.size.ffn
    return case.a * min(case.total, case.sharding.live)


def gradient_bytes(case: Case) -> int:
    """Gradients at the end of the backward pass.

    torch alone: fp32, whole. FSDP: this rank's share in fp32, and two blocks' on their way. ZeRO-1: in the forward pass's precision, whole.
    ZeRO-2 and 3: this rank's share, twice where several micro-batches are added up; offloaded, none. And while they are reduced, the
    largest tensor's, twice.
    """
    trained, sharding = case.size.trained, case.sharding
    if sharding.fsdp:
        return int(4 * case.share) + 2 * (case.a + 4) * trained // case.size.layers
    if sharding.stage == 0:
        return 4 * trained
    in_flight = 2 * case.a * case.size.largest_trained
    if sharding.optimizer_on != "device":
        return in_flight
    if sharding.stage == 1:
        return case.a * trained + in_flight
    copies = 2 if sharding.stage == 2 and case.config.gradient_accumulation_steps > 1 else 1
    return int(copies * case.a * case.share) + in_flight


def update_bytes(case: Case) -> int:
    """Gradients during the update: torch alone 4T, twice with several ranks (one flat message); FSDP 4T/N; ZeRO this rank's share, its flat
    copy and, with bf16, its fp32 copy; ZeRO-3 the fp32 copy of one sub-group at a time; offloaded, none."""
    sharding, share = case.sharding, case.share
    if sharding.fsdp:
        return int(4 * share)
    if sharding.stage == 0:
        return 4 * case.size.trained * (2 if case.ranks > 1 else 1)
    if sharding.optimizer_on != "device":
        return 0
    if sharding.stage == 3:
        return int(case.a * share + 4 * min(share, sharding.sub_group))
    return int((2 * case.a + (4 if case.config.bf16 else 0)) * share)


def optimizer_bytes(case: Case) -> int:
    """Adam's two moments, 8T, whole with torch alone, 8T/N with FSDP; under ZeRO the fp32 masters too, 12T/N, unless they are offloaded."""
    if case.sharding.fsdp:
        return int(8 * case.share)
    if case.sharding.stage == 0:
        return 8 * case.size.trained
    return int(12 * case.share) if case.sharding.optimizer_on == "device" else 0


def bucket_bytes(case: Case) -> int:
    """DeepSpeed's buffers for gradients on their way between ranks. On a CPU only what is written to counts."""
    elements = case.sharding.bucket if case.on_gpu else min(case.sharding.bucket, case.size.trained)
    return case.a * elements * case.sharding.buckets


def layer_bytes_per_token(case: Case) -> int:
    """What one layer of the language model keeps for the backward pass, a token: what autograd saves (tests/unit/test_plan.py).

    fp32 inputs of both norms and their scales, q, k, v, attention's output and its log-sums, and of the FFN the gate, the activated gate
    and up. Full tuning: also the inputs of the trained projections. LoRA: r numbers for each projection and, with dropout, a copy of its
    input and the dropout's mask.
    """
    size, a, config = case.size, case.a, case.config
    kept = 8 * size.hidden + 8 + a * (2 * size.queries + 2 * size.keys) + 4 * size.heads + 3 * a * size.ffn
    inputs = [size.hidden] * 3 + ([size.queries] if config.tune_o_proj else []) + [size.hidden] * 2 + [size.ffn]
    if case.lora and config.lora_dropout:
        mask = 1 if case.on_gpu else a
        return kept + sum((a + mask) * width + a * config.lora_r for width in inputs)
    return kept + 2 * a * size.hidden + a * size.ffn + (a * config.lora_r * len(inputs) if case.lora else 0)


def activation_bytes(case: Case) -> int:
    """What the language model keeps for the backward pass, and the gradients of one layer on their way back: an estimate.

    With gradient checkpointing each layer's input, and one layer in full while it is recomputed.
    """
    size, a = case.size, case.a
    one_layer = layer_bytes_per_token(case)
    back = 3 * a * size.ffn + 12 * size.hidden
    kept = a * size.hidden * size.layers + one_layer if case.config.gradient_checkpointing else one_layer * size.layers
    # Embeddings, the same with the video's features put in, and the final norm in fp32.
    return case.positions * (kept + back + (2 * a + 4) * size.hidden)


def logit_bytes(case: Case) -> int:
    """The head's output on supervised positions alone, N x V: as computed, in fp32, and the log-softmax or its gradient."""
    return case.micro_batch * case.supervised * case.size.vocab * (8 + (2 if case.config.bf16 else 0))


def tower_bytes(case: Case, clips: int) -> int:
    """The frozen tower's pass: every layer's output (one is picked afterwards), one layer at work, fp32 pixels; an estimate. From the
    feature cache: what is read, fp16, and the same in the run's precision."""
    size, a = case.size, case.a
    images = clips * case.frames
    if case.features:
        return images * size.tokens_per_frame * (2 + a) * size.vision_hidden + feature_bytes(case, clips)
    layer = a * (6 * size.vision_hidden + 2 * size.vision_ffn)
    tokens = images * size.tokens_per_frame * (a * size.vision_hidden * (size.vision_layers + 1) + layer)
    return tokens + images * 3 * size.image_size ** 2 * (8 + a) + feature_bytes(case, clips)


def feature_bytes(case: Case, clips: int) -> int:
    """The video's projected features."""
    return case.a * clips * case.frames * case.size.tokens_per_frame * case.size.hidden


def device_phases(case: Case) -> dict[str, dict[str, int]]:
    """Bytes of one rank on its device, by part, in the backward pass and in the update."""
    states = {"weights": weight_bytes(case) + gathered_bytes(case), "optimizer states": optimizer_bytes(case)}
    # Tower and language model follow each other, and so do the head and the layers' own backward pass.
    working = max(tower_bytes(case, case.micro_batch), activation_bytes(case) + feature_bytes(case, case.micro_batch))
    phases = {
        **starting_phase(case),
        "backward pass": {**states, "gradients": gradient_bytes(case), "communication": bucket_bytes(case), "activations": working,
                          "logits": logit_bytes(case)},
        "update": {**states, "gradients": update_bytes(case)}}
    if case.config.eval_steps:
        rows = validation_rows(case)
        working = max(tower_bytes(case, rows), validation_bytes(case) + feature_bytes(case, rows))
        phases["validation"] = {**states, "activations": working, "logits": exact_head_bytes(case)}
    if case.config.turn_grad_norm_steps:
        # A turn's gradients as they are added up, in fp32, and those of a micro-batch, beside what the step itself has.
        phases["turn gradients"] = {**phases["backward pass"], "turn's own gradients": (4 + case.a) * case.size.trained}
    for parts in phases.values():
        if case.on_gpu:
            parts[SLACK] = int(ALLOCATOR_SLACK * sum(parts.values()))
            parts[CONTEXT] = CONTEXT_CUDA
        elif "activations" in parts:
            parts[SLACK] = int(HEAP_SLACK * (parts["activations"] + parts["logits"])) + heap_holes(case)
    return phases


def starting_phase(case: Case) -> dict[str, dict[str, int]]:
    """ZeRO-3 moves the whole model to the device before it divides it."""
    return {"start": {"weights": case.a * case.total}} if case.sharding.stage == 3 else {}


def validation_rows(case: Case) -> int:
    """Rows of a validation batch: each clip twice, once for each verdict, its video too."""
    return 2 * case.config.per_device_eval_batch_size


def validation_bytes(case: Case) -> int:
    """The language model in a validation batch: one layer at a time and no graph. An estimate."""
    size, a = case.size, case.a
    layer = (8 + 4 * a) * size.hidden + a * (2 * size.queries + 2 * size.keys + 3 * size.ffn)
    return validation_rows(case) * case.tokens * layer


def exact_head_bytes(case: Case) -> int:
    """A validation's head: its weights in fp32 beside those of the model, and the logits of both verdicts' few tokens, left out."""
    return 4 * case.size.vocab * case.size.hidden


def heap_holes(case: Case) -> int:
    """LoRA on the CPU: the outputs of a projection and of its adapter, freed once they are added up, leave holes in the C library's heap,
    which the small tensors in between keep from being used again. An estimate, measured on the tiny model.
    """
    if not case.lora:
        return 0
    size = case.size
    outputs = size.queries + 2 * size.keys + 2 * size.ffn + size.hidden + (size.hidden if case.config.tune_o_proj else 0)
    return 2 * case.a * outputs * case.positions * (1 if case.config.gradient_checkpointing else size.layers)


def offload_bytes(case: Case) -> dict[str, int]:
    """What one rank keeps in host memory for an offloaded optimizer, and under ZeRO-3 for offloaded weights.

    ZeRO-1 and 2 (DeepSpeed 0.19): fp32 masters, fp32 gradients and Adam's moments, 16T/N; a copy of the weights on their way back, a x T/N;
    the gradients of earlier micro-batches, a x T/N, where there are several. ZeRO-3: the gradients always twice, no copy of the weights.
    On disk (NVMe) four buffers of a sub-group stay here: an estimate.
    """
    sharding, share, a = case.sharding, case.share, case.a
    lock = pinned_bytes if sharding.pinned and case.on_gpu else int
    parts = {}
    if sharding.optimizer_on == "host":
        several = case.config.gradient_accumulation_steps > 1 or sharding.stage == 3
        parts["optimizer states"] = lock(4 * share) + int(8 * share)
        parts["gradients"] = lock(4 * share) + (lock(a * share) if several else 0)
        parts["transfer buffers"] = (lock(a * share) if sharding.stage < 3 else 0) + lock(a * case.size.largest_trained)
    if sharding.optimizer_on == "disk":
        parts["transfer buffers"] = 4 * 4 * int(min(share, sharding.sub_group))
        parts["gradients"] = int(a * share)
    if sharding.parameters_on == "host":
        parts["weights"] = lock(a * case.total / case.ranks)
    if sharding.parameters_on == "disk":
        parts["weights"] = a * sharding.swapped
    return parts


def loading_bytes(case: Case) -> int:
    """The checkpoint as one rank holds it before it goes to the device, with both towers or none, and LoRA, which begins in fp32.

    In 4 bits each tensor goes to the device as it is read: here the largest one.
    """
    if case.packed:
        return 4 * case.size.vocab * case.size.hidden
    weights = case.total - (case.size.trained if case.lora else 0) + (0 if case.features else case.size.image_tower)
    return case.loaded * weights + (4 * case.size.trained if case.lora else 0)


def model_bytes(case: Case) -> int:
    """The model as it is written: all weights, the tower's too where it was not loaded, or the adapter."""
    return case.a * (case.size.trained if case.lora else case.size.base)


def host_phases(case: Case) -> dict[str, dict[str, int]]:
    """Bytes in the host memory of one machine, all its ranks together, by part, in each phase; without a GPU the device's parts too."""
    ranks = case.ranks_on_node
    libraries = {"libraries": (LIBRARIES_CUDA if case.on_gpu else LIBRARIES_CPU + (DEEPSPEED if case.sharding.stage else 0)) * ranks}
    offload = {part: size * ranks for part, size in offload_bytes(case).items()}
    steady = add(libraries, offload)
    phases = {"loading": add(libraries, {"loaded checkpoint": loading_bytes(case) * ranks})}
    if case.on_gpu:
        phases["training"] = steady
    else:
        for phase, parts in device_phases(case).items():
            phases[phase] = add(steady, {part: size * ranks for part, size in parts.items()})
        steady = add(steady, {"weights": weight_bytes(case) * ranks, "optimizer states": optimizer_bytes(case) * ranks})
    # The first rank alone gathers and writes.
    shard = min(CHECKPOINT_SHARD, 12 * case.size.trained) + 12 * case.size.largest_trained
    phases["writing a checkpoint"] = add(steady, {"file in the making": shard})
    phases["writing the model"] = add(steady, {"file in the making": model_bytes(case)})
    return phases


def add(*parts: dict[str, int]) -> dict[str, int]:
    """The sum of parts, by name."""
    return {name: sum(part.get(name, 0) for part in parts) for name in dict.fromkeys(name for part in parts for name in part)}


def peak(phases: dict[str, dict[str, int]]) -> tuple[str, int]:
    """The phase that takes most, and its bytes; ("", 0) where there is none."""
    return max(((phase, sum(parts.values())) for phase, parts in phases.items()), key=lambda found: found[1], default=("", 0))


def without(phases: dict[str, dict[str, int]], names: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """The same phases without some of their parts."""
    return {phase: {part: size for part, size in parts.items() if part not in names} for phase, parts in phases.items()}


def checkpoints_kept(case: Case) -> int:
    """Checkpoints that stand side by side at worst: `save_total_limit`, the one being written and, with validation, the best one; or as
    many as the run writes. One at least: whatever `save_steps` says, a run saves when it is stopped and before it writes its model.
    """
    config = case.config
    keeps_best = config.eval_steps and (config.save_steps or config.load_best_model_at_end)
    most = config.save_total_limit + 1 + (1 if keeps_best else 0)
    periods = [every for every in (config.save_steps, config.eval_steps if keeps_best else 0) if every]
    if case.steps is None and periods:
        return most
    return min(most, 1 + sum((case.steps - 1) // every for every in periods))


def disk_parts(case: Case) -> dict[str, int]:
    """Bytes of the run folder: checkpoints (fp32 weights and moments of what is trained, 12T each), and the model or adapter at the end."""
    return {"checkpoints": checkpoints_kept(case) * 12 * case.size.trained, "model": model_bytes(case)}


def swapped_parts(case: Case) -> dict[str | None, dict[str, int]]:
    """Bytes of what is offloaded to a disk, by folder (None: the run folder, which all machines share) and part: fp32 masters, gradients
    and Adam's moments, 16T (DeepSpeed 0.19), and with `offload_param` the weights; in a machine's own folder those of its ranks."""
    found: dict[str | None, dict[str, int]] = {}
    for on, path, part, size in (
            (case.sharding.optimizer_on, case.sharding.optimizer_path, "offloaded states", 16 * case.size.trained),
            (case.sharding.parameters_on, case.sharding.parameters_path, "offloaded weights", case.a * case.total)):
        if on == "disk":
            found.setdefault(path, {})[part] = size if path is None else size * case.ranks_on_node // case.ranks
    return found
