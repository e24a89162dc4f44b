"""The simulated mechanisms: physics that a fault changes, pictures that a seed decides."""

from __future__ import annotations

import numpy as np
import pytest
from phys_ad import ANOMALIES

from vlmphys.mechanisms import known_mechanisms, load_mechanism, visible_in_one_frame
from vlmphys.mechanisms.clips import simulate_clip
from vlmphys.mechanisms.physics import (FPS, driven, eased, free_fall, motor_speed, per_frame, rotor, seized, strokes, there_and_back,
                                        times)
from vlmphys.pretrain.pool import MAX_PARTS

pytestmark = pytest.mark.unit

PUBLISHED_FRAMES = {
    "ball": 240, "button": 180, "car": 60, "caster_wheel": 180, "clip": 120, "clock": 180, "fan": 180, "gear": 120, "hinge": 120,
    "liquid": 180, "lock": 60, "magnet": 180, "rolling_bearing": 60, "rubber_band": 180, "screw": 180, "servo": 120, "slide": 120,
    "spherical_bearing": 60, "sticky_roller": 180, "toothpaste": 180, "usb": 60, "zipper": 120}
EVERY_STATE = [(category, state) for category, anomalies in ANOMALIES.items() for state in ("anomaly_free", *anomalies)]


def channels(category: str, state: str, seed: int) -> dict[str, np.ndarray]:
    return simulate_clip(load_mechanism(category), category, state, seed).trajectory.channels


def test_categories_faults_and_lengths_are_the_published_ones():
    assert set(ANOMALIES) <= set(known_mechanisms())
    for category, anomalies in ANOMALIES.items():
        mechanism = load_mechanism(category)
        assert sorted(mechanism.ANOMALIES) == sorted(anomalies)
        assert mechanism.FRAMES == PUBLISHED_FRAMES[category]
        assert 1 <= len(mechanism.PARTS) <= MAX_PARTS
    assert len(EVERY_STATE) == 69


@pytest.mark.parametrize(("category", "state"), EVERY_STATE)
def test_every_state_gives_finite_channels_and_whole_pictures(category, state):
    mechanism = load_mechanism(category)
    for seed in range(6):
        clip = simulate_clip(mechanism, category, state, seed)
        for name, values in clip.trajectory.channels.items():
            assert values.shape == (mechanism.FRAMES,), name
            assert np.isfinite(values).all(), name
        span = clip.trajectory.fault_span_seconds
        if state == "anomaly_free":
            assert span is None
        else:
            assert 0.0 <= span[0] < span[1] <= mechanism.FRAMES / FPS + 1e-9
    pictures = np.stack(list(clip.frames(48, np.array([0, mechanism.FRAMES // 2, mechanism.FRAMES - 1]))))
    assert pictures.shape == (3, 48, 48, 3)
    assert pictures.dtype == np.uint8
    assert pictures.std() > 10


def still_share(values: np.ndarray, fastest: float | None = None) -> float:
    """The share of a clip's frames in which a channel moves by less than a twentieth of its fast steps."""
    steps = np.abs(np.diff(values))
    return float((steps <= 0.05 * (np.quantile(steps, 0.9) if fastest is None else fastest)).mean())


@pytest.mark.parametrize("category", list(ANOMALIES))
def test_the_same_seed_gives_the_same_pixels_and_another_seed_does_not(category):
    mechanism, state = load_mechanism(category), ANOMALIES[category][0]
    frames = np.linspace(0, mechanism.FRAMES - 1, 4).astype(int)
    first, again, other = (np.stack(list(simulate_clip(mechanism, category, state, seed).frames(64, frames))) for seed in (7, 7, 8))
    assert (first == again).all()
    assert all((one != two).mean() > 0.5 for one, two in zip(first, other))


def test_faults_that_one_frame_shows_have_reasons_and_the_docstrings_name_them():
    named = {category: visible_in_one_frame(category) for category in ANOMALIES}
    assert named["fan"] == {} == visible_in_one_frame("valve")
    assert set(named["slide"]) == {"ball_drop", "derailment"}
    for category, reasons in named.items():
        mechanism = load_mechanism(category)
        assert set(reasons) <= set(ANOMALIES[category])
        texts = " ".join(f"{mechanism.__doc__} {mechanism.simulate.__doc__}".split())
        assert ("visible in one frame" in texts) == bool(reasons), category
        assert all(len(reason.split()) > 3 for reason in reasons.values()), category


def test_wild_looks_differ_more_than_filmed_ones():
    mechanism = load_mechanism("slide")

    def spread(appearance: str) -> float:
        means = [next(simulate_clip(mechanism, "slide", "train", seed, appearance).frames(32, np.array([0]))).mean((0, 1)) for seed in range(30)]
        return float(np.std(means, axis=0).mean())

    assert spread("wild") > 2 * spread("physad")


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'gear'"):
        load_mechanism("gaer")
    with pytest.raises(ValueError, match="unknown state 'stucc' of fan"):
        simulate_clip(load_mechanism("fan"), "fan", "stucc", 0)
    with pytest.raises(ValueError, match="unknown appearance"):
        simulate_clip(load_mechanism("fan"), "fan", "stuck", 0, "sepia")


def test_a_driven_mass_settles_on_its_command_and_stops_at_its_stop():
    instants = times(240)
    command = eased(instants, [0.2, 1.0], [0.0, 2.0])
    assert driven(command, 5.0)[-1] == pytest.approx(2.0, abs=1e-3)
    stopped = driven(command, 5.0, upper=0.8)
    assert stopped.max() == pytest.approx(0.8)
    assert stopped[-1] == pytest.approx(0.8)


def test_a_rotor_reaches_the_speed_at_which_drag_equals_torque():
    instants = times(600)
    angle = rotor(np.full(len(instants), 12.0), np.full(len(instants), 4.0), 0.0, 0.0)
    assert (angle[-1] - angle[-2]) / (instants[1] - instants[0]) == pytest.approx(3.0, rel=1e-3)


def test_a_seized_mass_stays_and_then_follows_again():
    instants = times(240)
    command = eased(instants, [0.0, 4.0], [0.0, 4.0])
    held = ((instants > 1.0) & (instants < 3.0)).astype(float)
    path = seized(command, 5.0, 0.9, held)
    assert np.ptp(path[held > 0]) < 0.02
    assert path[-1] == pytest.approx(4.0, abs=0.05)
    assert (seized(command, 5.0, 0.9, 0 * held) == driven(command, 5.0, 0.9)).all()


def test_motors_and_strokes_stay_within_their_limits():
    instants, sides, starts = times(120), set(), []
    for seed in range(40):
        speed = motor_speed(np.random.default_rng(seed), instants, 0.5, 2.0) / (2 * np.pi)
        sides.add(np.sign(speed[-1]))
        assert 0.5 <= np.abs(speed[speed != 0]).min() and np.abs(speed).max() <= 2.0
        assert (speed == 0).mean() <= 0.125
        path = strokes(np.random.default_rng(seed), instants, (0.3, 0.6), (0.4, 0.7), 0.1)
        assert -0.6 <= path.min() <= -0.3 and 0.3 <= path.max() <= 0.6
        starts.append(path[0])
    assert sides == {-1.0, 1.0}
    assert np.std(starts) > 0.15


def test_a_body_falls_by_half_g_t_squared_down_to_the_floor():
    fallen = free_fall(np.array([0.0, 0.5, 1.0, 9.0]), 0.5, 4.0, 1.5)
    assert fallen.tolist() == [0.0, 0.0, 0.5, 1.5]
    assert per_frame(np.arange(8)).tolist() == [0, 4]


def test_a_gripper_goes_all_the_way_within_its_second_and_often_has_not_come_back():
    instants = times(60)
    last = []
    for seed in range(40):
        command, there = there_and_back(np.random.default_rng(seed), instants)
        assert command[0] == pytest.approx(0.0, abs=0.01)
        assert 0.3 <= there < 0.75
        assert command[(instants > there) & (instants < there + 0.15)].min() == pytest.approx(1.0)
        last.append(command[-1])
    assert np.ptp(last) > 0.5


@pytest.mark.parametrize("seed", range(8))
class TestFaultsChangeThePhysics:
    """Each fault shows in the true motion, for seeds that were not picked."""

    def test_fan(self, seed):
        turned = {state: np.abs(np.diff(channels("fan", state, seed)["blade"])) for state in ("anomaly_free", "stuck", "uneven")}
        assert turned["anomaly_free"].std() < 0.02 * turned["anomaly_free"].mean()
        assert (turned["stuck"][5:] < 1e-3 + 0.1 * turned["stuck"].max()).mean() > 0.3
        assert turned["uneven"].std() > 0.2 * turned["uneven"].mean()
        shakes = {state: np.abs(channels("fan", state, seed)["hub_x"]).max() for state in ("anomaly_free", "vibrate")}
        assert shakes["vibrate"] > 5 * shakes["anomaly_free"]

    def test_gear(self, seed):
        for state, lost in (("anomaly_free", 0), ("single", 1), ("double", 2), ("triple", 3)):
            steps = np.abs(np.diff([channels("gear", state, seed)[f"gear_{name}"] for name in ("one", "two", "three", "four")], axis=1))
            still = (steps < 0.05 * steps[0].mean()).mean(axis=1) > 0.3
            assert still.tolist() == [False] * (4 - lost) + [True] * lost
        blocked = channels("gear", "stuck", seed)
        assert all((np.abs(np.diff(blocked[f"gear_{name}"])) < 0.005).mean() > 0.4 for name in ("one", "two", "three", "four"))

    def test_hinge_slide_and_clip(self, seed):
        assert channels("hinge", "angle_limited", seed)["leaf"].max() < 1.45 < 1.8 < channels("hinge", "anomaly_free", seed)["leaf"].max()
        assert channels("hinge", "falloff", seed)["fall"][-1] > 0.3
        assert channels("slide", "jam", seed)["carriage"].max() < 0.65 < 0.75 < channels("slide", "anomaly_free", seed)["carriage"].max()
        assert channels("slide", "derailment", seed)["tilt"][-1] > 0.3
        assert channels("slide", "ball_drop", seed)["ball_fall"][-1] > 0.3
        assert channels("clip", "unable_press", seed)["jaw"].max() < 0.2 < 0.5 < channels("clip", "anomaly_free", seed)["jaw"].max()
        kept, sound = channels("clip", "unable_rebound", seed), channels("clip", "anomaly_free", seed)
        assert kept["jaw"][-12:].min() > 0.3 > 0.1 > sound["jaw"][sound["finger"] < 0.1].min()
        assert sound["jaw"].max() - sound["jaw"].min() > 0.5, "a whole cycle is in every clip"

    def test_servo_ball_and_band(self, seed):
        reach = {state: np.abs(channels("servo", state, seed)["horn"]).max() for state in ("angle_limited", "anomaly_free")}
        assert reach["angle_limited"] < 0.85 < 1.0 < reach["anomaly_free"]
        assert abs(channels("servo", "centered_anomaly", seed)["horn"][-1]) > 0.35 > 0.1 > abs(channels("servo", "anomaly_free", seed)["horn"][-1])
        assert np.abs(channels("servo", "vibrate", seed)["case"]).max() > 0.04 > 0.02 > np.abs(channels("servo", "anomaly_free", seed)["case"]).max()
        sound, leaking, soft = (channels("ball", state, seed)["height"] for state in ("anomaly_free", "leak", "unfull"))
        assert sound.min() > 0.8 * sound.max()
        middle = len(sound) // 2
        assert abs(sound[middle:].max() - sound[:middle].max()) < 0.05 * sound.max(), "round again in each half of the clip"
        assert leaking[-middle:].max() < 0.97 * leaking[:middle].max()
        assert soft.min() < 0.75 * soft.max()
        assert channels("rubber_band", "crack", seed)["gap"][-1] > 0.7
        assert channels("rubber_band", "anomaly_free", seed)["gap"].max() == 0.0

    def test_zipper(self, seed):
        def longest_rest_on_the_way(state: str) -> int:
            """The most frames in a row in which the slider stands still away from both ends."""
            slider = channels("zipper", state, seed)["slider"]
            still = (np.abs(np.diff(slider)) < 5e-4) & (slider[:-1] > 0.07) & (slider[:-1] < 0.93)
            return max(len(run) for run in "".join("x" if rest else " " for rest in still).split(" "))

        def split(state: str) -> float:
            """The widest half gap at a station a fifth of the chain or more behind the slider, after the first half second."""
            moving = channels("zipper", state, seed)
            return max(float((moving[f"gap_{index:02d}"] * (moving["slider"] - index / 11 > 0.2))[30:].max()) for index in range(1, 12))

        assert longest_rest_on_the_way("anomaly_free") < 15 < 40 < longest_rest_on_the_way("stuck")
        assert split("anomaly_free") < 0.05 < 0.14 < split("unable_close")
        assert np.ptp(channels("zipper", "anomaly_free", seed)["slider"]) > 0.8

    def test_magnet(self, seed):
        gaps, heights = {}, {}
        for state in ("anomaly_free", "degaussing", "drop"):
            moving = channels("magnet", state, seed)
            heights[state] = moving["iron_height"].max()
            lost = (moving["iron_height"] > 0.02) & (moving["lift"] - moving["iron_height"] > 0.1)
            gaps[state] = int(lost.sum())
        assert heights["degaussing"] < 0.05 < 0.7 < min(heights["anomaly_free"], heights["drop"])
        assert gaps["anomaly_free"] == 0, "the iron is in the air without the magnet"
        fallen = channels("magnet", "drop", seed)["iron_height"]
        assert gaps["drop"] >= 10 and fallen[np.argmax(fallen) + 40:].max() < 0.1

    def test_toothpaste(self, seed):
        for state in ("anomaly_free", "leak"):
            moving = channels("toothpaste", state, seed)
            growth = [np.ptp(moving[f"spot_{spot}_size"]) for spot in (0, 1)]
            assert growth[1] == 0.0
            assert (growth[0] > 0.08) if state == "leak" else (growth[0] == 0.0)
            assert np.diff(moving["strand"]).min() >= 0.0, "paste does not go back into the tube"
            assert np.ptp(moving["flat"]) > 0.5 and np.ptp(moving["strand"]) > 0.1

    def test_liquid(self, seed):
        sound, foreign, leaking = (channels("liquid", state, seed) for state in ("anomaly_free", "foreign_obj", "leak"))
        for moving in (sound, foreign):
            assert np.ptp(moving["level"]) == 0.0 and moving["stream"].max() == 0.0
        assert leaking["level"][-1] < 0.61 * leaking["level"][0]
        assert 0.88 * np.ptp(leaking["level"]) == pytest.approx(1.72 * np.ptp(leaking["basin"])), "what the vessel loses is in the basin"
        assert sound["body_size"].max() == leaking["body_size"].max() == 0.0 < 0.1 <= foreign["body_size"].min()
        assert np.ptp(foreign["body_u"]) + np.ptp(foreign["body_v"]) >= 0.35
        assert foreign["body_v"].min() >= foreign["body_size"][0] - 1e-9 and np.abs(foreign["body_u"]).max() <= 0.44 - foreign["body_size"][0] + 1e-9
        for moving in (sound, foreign, leaking):
            assert np.ptp(moving["slope"]) > 0.1

    def test_car(self, seed):
        for state, held in (("anomaly_free", ()), ("all_wheel", ("front", "back")), ("back_wheel", ("back",)), ("front_wheel", ("front",))):
            truth = channels("car", state, seed)
            fastest = np.abs(np.diff(truth["belt"])).max() / 0.36
            for wheel in ("front", "back"):
                share = still_share(truth[wheel], fastest)
                assert share > 0.5 if wheel in held else share < 0.25

    def test_rolling_and_spherical_bearing(self, seed):
        for state, still in (("anomaly_free", False), ("ball_stuck", True)):
            truth = channels("rolling_bearing", state, seed)
            assert still_share(truth["inner"]) < 0.25
            share = still_share(truth["balls"], 0.327 * np.abs(np.diff(truth["inner"])).max())
            assert share > 0.5 if still else share < 0.25
        for state, still in (("anomaly_free", False), ("jam", True)):
            truth = channels("spherical_bearing", state, seed)
            share = still_share(truth["rod"], 0.02)
            assert share > 0.5 if still else share < 0.4 and np.ptp(truth["rod"]) > 0.6
            assert np.abs(truth["grip"] - truth["rod"]).max() < 0.08

    def test_sticky_roller(self, seed):
        for state in ("anomaly_free", "stuck"):
            truth = channels("sticky_roller", state, seed)
            rolled, moved = np.abs(np.diff(truth["roller"])), np.abs(np.diff(truth["axle"])) / 0.42
            slides = (rolled < 0.3 * moved) & (moved > 0.005)
            assert slides.sum() > 40 if state == "stuck" else slides.sum() < 5
            assert truth["fall"].max() == 0.0
            if state == "anomaly_free":
                slip = np.diff(truth["axle"]) - 0.42 * np.diff(truth["roller"])
                assert np.abs(slip).max() < 0.25 * np.abs(np.diff(truth["axle"])).max(), "the side at the wall, to the left, rests on it"
        fallen = channels("sticky_roller", "falloff", seed)
        assert fallen["fall"][0] == 0.0 < fallen["fall"][-1]
        assert np.abs(fallen["left_at"] + fallen["fall"])[-1] == pytest.approx(0.45, abs=1e-3)

    def test_what_rolls_or_meshes_turns_the_right_way(self, seed):
        def turned(category: str) -> dict[str, float]:
            return {name: float(values[-1] - values[0]) for name, values in channels(category, "anomaly_free", seed).items()}

        car, gear, bearing = turned("car"), turned("gear"), turned("rolling_bearing")
        for wheel in ("front", "back"):
            assert car["belt"] == pytest.approx(-0.36 * car[wheel], rel=0.1), "clockwise wheels stand on a belt that runs to the left"
        for name, share in (("two", -0.44 / 0.46), ("three", 1.0), ("four", -0.44 / 0.46)):
            assert gear[f"gear_{name}"] == pytest.approx(share * gear["gear_one"], rel=0.1), "neighbours turn against each other"
        assert bearing["balls"] == pytest.approx(0.327 * bearing["inner"], rel=0.1), "the balls go round with the inner ring"

    def test_caster_wheel(self, seed):
        for state, held in (("anomaly_free", None), ("axis_stuck1", "wheel"), ("axis_stuck2", "swivel")):
            truth = channels("caster_wheel", state, seed)
            for axis, fastest in (("wheel", 0.02), ("swivel", 0.02)):
                share = still_share(truth[axis], fastest)
                assert share > 0.5 if axis == held else share < 0.4
            assert np.ptp(truth["finger"]) > 0.15

    def test_button(self, seed):
        sound, dark, blocked, lit, lost = (channels("button", state, seed) for state in ("anomaly_free", *ANOMALIES["button"]))
        for clip in (sound, dark):
            assert clip["cap"].max() > 0.85
            assert clip["cap"][clip["finger"] < -0.2].min() < 0.1
        assert sound["lamp"][sound["cap"] > 0.8].max() > 0.9
        assert dark["lamp"].max() == lost["lamp"].max() == blocked["lamp"].max() == 0.0
        assert blocked["cap"].max() <= 0.1
        for clip in (lit, lost):
            assert (clip["cap"][clip["finger"] < -0.2] > 0.65).sum() >= 15
        assert lit["lamp"][(lit["cap"] > 0.65) & (lit["finger"] < -0.2)].min() > 0.5

    def test_the_buttons_faults_show_within_their_span_alone(self, seed):
        for state in ("no_light", "Unrebound_light", "Unrebound_nolight"):
            trajectory = simulate_clip(load_mechanism("button"), "button", state, seed).trajectory
            first, last = trajectory.fault_span_seconds
            clip, instants = trajectory.channels, np.arange(180) / FPS
            shows = clip["cap"] > 0.65 if state == "no_light" else (clip["cap"] > 0.65) & (clip["finger"] < -0.2)
            assert shows.any() and instants[shows].min() >= first and instants[shows].max() <= last

    def test_clock(self, seed):
        steps = {state: np.diff(channels("clock", state, seed)["long"][::22]) for state in ("anomaly_free", *ANOMALIES["clock"])}
        assert steps["anomaly_free"].min() > 0.12
        assert (np.abs(steps["stuck"]) < 0.01).sum() >= 2
        assert np.abs(np.diff(channels("clock", "vibrate", seed)["short"])).max() < 0.01
        assert (np.diff(channels("clock", "vibrate", seed)["long"]) < -0.01).mean() > 0.1
        assert (np.diff(channels("clock", "anomaly_free", seed)["long"]) > -0.01).all()

    def test_lock(self, seed):
        travelled = {state: [np.ptp(channels("lock", state, seed)[name]) for name in ("knob", "bolt")]
                     for state in ("anomaly_free", *ANOMALIES["lock"])}
        knob, bolt = travelled["anomaly_free"]
        assert knob > 2.1 and bolt > 0.35
        knob, bolt = travelled["jam"]
        assert knob < 1.3 and bolt < 0.28
        knob, bolt = travelled["structure_detache"]
        assert knob > 2.1 and bolt < 0.28
        assert channels("lock", "structure_detache", seed)["loose"][-1] == 1.0

    def test_usb(self, seed):
        swung = {state: np.ptp(channels("usb", state, seed)["cover"]) for state in ("anomaly_free", *ANOMALIES["usb"])}
        assert swung["anomaly_free"] > 2.3
        assert 0.2 < swung["jam"] < 1.25

    def test_screw(self, seed):
        travelled = {state: [np.ptp(channels("screw", state, seed)[name]) for name in ("depth", "head", "driver")]
                     for state in ("anomaly_free", *ANOMALIES["screw"])}
        assert all(driver > 5.5 for _, _, driver in travelled.values())
        depth, head, driver = travelled["anomaly_free"]
        assert depth > 0.19 and head == pytest.approx(driver)
        depth, head, driver = travelled["stripped"]
        assert depth < 0.1 and head == pytest.approx(driver)
        depth, head, driver = travelled["unable_goin"]
        assert depth < 0.1 and head < 0.3 * driver
