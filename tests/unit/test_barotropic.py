"""The example model against theory, its files against CF, its restarts against an unbroken run."""

from __future__ import annotations

import importlib
import json
import math
import sys
import tomllib
from pathlib import Path
from typing import Any

import cftime  # type: ignore[import-untyped]
import numpy as np
import pytest
import xarray as xr

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "barotropic"

# The example is a directory of scripts, not a package: its files import each other by name.
sys.path.insert(0, str(EXAMPLE))
barotropic = importlib.import_module("barotropic")
output = importlib.import_module("output")
model = importlib.import_module("model")
results = importlib.import_module("results")
analyse = importlib.import_module("analyse")
compare = importlib.import_module("compare")
members = importlib.import_module("members")

DAY_S = 86_400.0
SMALL = {"n": 32, "length_m": 5.0e6}
SMALL_RUN = ["--n=32", "--length=5e6", "--segment-days=2"]


def turbulence(**parameters: Any) -> Any:
    p = barotropic.Parameters(**{**SMALL, **parameters})
    grid = barotropic.Grid(p.n, p.length_m)
    return barotropic.Model(p, barotropic.random_vorticity(grid, seed=3, peak_mode=4))


def advance(flow: Any, hours: float) -> Any:
    for _ in range(round(hours * 3600 / flow.parameters.dt_s)):
        flow.step()
    return flow


# --- the equations ------------------------------------------------------------------------------


def test_velocity_is_that_of_the_streamfunction() -> None:
    grid = barotropic.Grid(32, 2 * math.pi)
    x, y = grid.x_m[np.newaxis, :], grid.x_m[:, np.newaxis]
    psi = np.sin(2 * x) * np.cos(3 * y)
    u, v = grid.velocity(grid.to_spectrum(-13 * psi))  # ζ = ∇²ψ = -(2² + 3²) ψ
    np.testing.assert_allclose(u, 3 * np.sin(2 * x) * np.sin(3 * y), atol=1e-13)
    np.testing.assert_allclose(v, 2 * np.cos(2 * x) * np.cos(3 * y), atol=1e-13)


def test_tendency_is_the_advection_without_aliasing() -> None:
    """Against u·∇ζ + βv, multiplied out on a grid twice as fine, where nothing can alias."""
    beta, mean_flow = 2e-11, 7.0
    flow = turbulence(beta=beta, mean_flow=mean_flow)
    coarse, n = flow.grid, flow.grid.n
    fine = barotropic.Grid(2 * n, coarse.length_m)
    zeta = np.zeros(fine.k2.shape, complex)
    rows = np.fft.fftfreq(n, 1 / n).astype(int)
    zeta[rows[:, np.newaxis], np.arange(n // 2 + 1)] = flow.vorticity

    u, v = fine.velocity(zeta)
    zeta_x, zeta_y = fine.to_grid(1j * fine.k * zeta), fine.to_grid(1j * fine.l * zeta)
    expected = fine.to_spectrum(-(u + mean_flow) * zeta_x - v * zeta_y - beta * v)
    expected = expected[rows[:, np.newaxis], np.arange(n // 2 + 1)] * coarse.kept
    np.testing.assert_allclose(flow.tendency(flow.vorticity), expected, rtol=0, atol=1e-22)
    assert np.abs(expected).max() > 1e-13  # a tolerance that could tell


def test_spectrum_sums_to_the_energy_of_the_velocities() -> None:
    flow = turbulence()
    u, v = flow.velocity()
    energy = float((u**2 + v**2).mean() / 2)
    assert flow.energy() == pytest.approx(energy, rel=1e-12)
    assert flow.grid.energy_spectrum(flow.vorticity).sum() == pytest.approx(energy, rel=1e-12)
    assert flow.enstrophy() == pytest.approx((flow.grid.to_grid(flow.vorticity) ** 2).mean() / 2)


def test_spectrum_puts_a_wave_into_its_shell() -> None:
    grid = barotropic.Grid(32, 5.0e6)
    spectrum = grid.energy_spectrum(barotropic.rossby_wave(grid, 3, 4, rms_speed=2.0))
    assert spectrum[5] == pytest.approx(2.0)
    assert spectrum.sum() == pytest.approx(2.0)


def test_initial_turbulence_depends_on_the_seed_alone() -> None:
    grid = barotropic.Grid(32, 5.0e6)
    one, again, other = (barotropic.random_vorticity(grid, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    assert math.sqrt(2 * grid.energy(one)) == pytest.approx(10.0)


# --- the time step ------------------------------------------------------------------------------


@pytest.mark.parametrize("efold_h", [0.0, 12.0])
def test_time_step_is_of_fourth_order(efold_h: float) -> None:
    reference = advance(turbulence(dt_s=150, efold_h=efold_h), 24).vorticity
    errors = [
        np.abs(advance(turbulence(dt_s=dt, efold_h=efold_h), 24).vorticity - reference).max()
        for dt in (2400, 1200)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(4.0, abs=0.4)


@pytest.mark.parametrize("quantity", ["energy", "enstrophy"])
def test_inviscid_flow_conserves_as_the_step_goes_to_zero(quantity: str) -> None:
    def drift(dt_s: float) -> float:
        flow = turbulence(dt_s=dt_s, efold_h=0.0)
        before = getattr(flow, quantity)()
        return abs(float(getattr(advance(flow, 48), quantity)() / before - 1))

    coarse, fine = drift(2400), drift(1200)
    assert fine < 1e-5
    assert math.log2(coarse / fine) > 3.8


def test_hyperviscosity_damps_the_cutoff_at_its_rate() -> None:
    p = barotropic.Parameters(**SMALL, beta=0.0, efold_h=12.0)
    grid = barotropic.Grid(p.n, p.length_m)
    flow = barotropic.Model(p, barotropic.rossby_wave(grid, 10, 0))
    before = flow.energy()
    assert math.log(before / advance(flow, 6).energy()) == pytest.approx(2 * 6 / 12)


@pytest.mark.parametrize(
    ("mode_x", "mode_y", "mean_flow"), [(3, 2, 0.0), (2, -1, 0.0), (4, 3, 15.0)]
)
def test_rossby_wave_moves_with_its_phase_speed(mode_x: int, mode_y: int, mean_flow: float) -> None:
    """The whole field after two days is the first one, displaced by c·t: amplitude is free."""
    p = barotropic.Parameters(**SMALL, dt_s=600, mean_flow=mean_flow, efold_h=0.0)
    grid = barotropic.Grid(p.n, p.length_m)
    start = barotropic.rossby_wave(grid, mode_x, mode_y, rms_speed=5.0)
    speed = barotropic.rossby_phase_speed(grid, mode_x, mode_y, beta=p.beta, mean_flow=mean_flow)
    flow = advance(barotropic.Model(p, start), 48)
    displaced = start * np.exp(-1j * grid.k * speed * flow.time_s)
    assert np.abs(flow.vorticity - displaced).max() < 1e-6 * np.abs(start).max()


@pytest.mark.parametrize(("cfl", "stable"), [(0.99, True), (1.08, False)])
def test_cfl_limit_is_where_the_shortest_wave_becomes_unstable(cfl: float, stable: bool) -> None:
    mean_flow = 20.0
    grid = barotropic.Grid(64, 5.0e6)
    dt_s = cfl * barotropic.CFL_LIMIT * grid.spacing_m / mean_flow
    p = barotropic.Parameters(64, 5.0e6, dt_s, beta=0.0, mean_flow=mean_flow, efold_h=0.0)
    flow = barotropic.Model(p, barotropic.rossby_wave(grid, 21, 0, rms_speed=1e-3))
    assert flow.cfl() == pytest.approx(cfl * barotropic.CFL_LIMIT, rel=1e-3)
    if stable:
        advance(flow, 300 * dt_s / 3600)
        assert flow.energy() <= flow.initial_energy
    else:
        with pytest.raises(barotropic.BlowUpError, match=r"CFL number 1\.4"):
            advance(flow, 300 * dt_s / 3600)


def test_overflow_is_reported_as_blow_up() -> None:
    flow = turbulence(dt_s=1e60, efold_h=0.0)
    with pytest.raises(barotropic.BlowUpError, match=r"step 1, .*nan"):
        flow.step()


@pytest.mark.parametrize(
    "wrong", [{"n": 31}, {"n": 6}, {"length_m": 0.0}, {"length_m": float("nan")}]
)
def test_impossible_grids_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        barotropic.Grid(**{**SMALL, **wrong})


# --- one member ---------------------------------------------------------------------------------


def run(out: Path, *options: str) -> int:
    out.mkdir(exist_ok=True)
    return int(model.main([*SMALL_RUN, f"--out={out}", *options]))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_restarted_run_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped between a history file and its restart file, where the two disagree, and resumed."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(whole, "--days=5") == 0

    class Killed(Exception):
        pass

    def die(*_: object) -> None:
        if (broken / "history_0002-0004.nc").exists():
            raise Killed
        output.save_restart(*_)

    with monkeypatch.context() as patch:
        patch.setattr(model, "save_restart", die)
        with pytest.raises(Killed):
            run(broken, "--days=5")
    assert {"history_0000-0002.nc", "history_0002-0004.nc", "restart.npz"} == set(contents(broken))
    capsys.readouterr()
    assert run(broken, "--days=5") == 0
    assert "resuming from" in capsys.readouterr().out

    with np.load(whole / "restart.npz") as a, np.load(broken / "restart.npz") as b:
        assert a["step"] == 5 * 48
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    histories = [
        {name: data for name, data in contents(path).items() if name.endswith(".nc")}
        for path in (whole, broken)
    ]
    assert histories[0] == histories[1]


def test_finished_run_can_be_made_longer_and_repeating_it_changes_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, "--days=2") == 0
    assert run(tmp_path, "--days=4") == 0
    before = contents(tmp_path)
    assert sorted(before) == ["history_0000-0002.nc", "history_0002-0004.nc", "restart.npz"]
    assert run(tmp_path, "--days=4") == 0
    assert contents(tmp_path) == before


def test_restart_file_of_another_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--days=1", "--seed=1") == 0
    before = contents(tmp_path)
    assert run(tmp_path, "--days=2", "--seed=2") == model.EXIT_USAGE
    assert "seed = 1 (now 2)" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_failed_write_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with output.replacing(path) as partial:
            partial.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert contents(tmp_path) == {"file": b"old"}


def test_too_long_a_step_blows_up_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (member,) = (m for m in members.MEMBERS if m.expected_state == "FAILED")
    assert model.main([f"--out={tmp_path}", *arguments(member)]) == model.EXIT_BLOW_UP
    said = capsys.readouterr()
    assert "blow-up at step" in said.err
    assert "CFL number" in said.err
    assert "day 5." in said.err
    assert len(said.err.splitlines()) == 1
    # What was done before the failure stays, to be looked at.
    assert set(contents(tmp_path)) == {"history_0000-0005.nc", "restart.npz"}


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--dt=1000", "whole steps"),
        ("--dt=nan", "--dt must be a finite number"),
        ("--output-hours=0.6", "whole number of steps"),
        ("--days=0", "--days"),
        ("--segment-days=0", "--segment-days"),
        ("--n=33", "n must be even"),
        ("--efold-hours=-1", "efold_h"),
        ("--beta=nan", "beta"),
        ("--out=/nowhere/at/all", "/nowhere/at/all"),
    ],
)
def test_wrong_options_are_refused_by_name(
    option: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, option) == model.EXIT_USAGE
    assert complaint in capsys.readouterr().err
    assert not contents(tmp_path)


def test_progress_has_one_line_per_day(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--days=3", "--output-hours=6") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]
    assert all("energy" in line and "CFL" in line for line in lines)


# --- its files ----------------------------------------------------------------------------------


def test_history_follows_cf_in_a_noleap_calendar(tmp_path: Path) -> None:
    options = ("--experiment=rossby", "--days=60", "--segment-days=30", "--dt=10800")
    assert run(tmp_path, *options) == 0
    with xr.open_dataset(tmp_path / "history_0000-0030.nc", engine="h5netcdf") as file:
        assert file.attrs["Conventions"] == "CF-1.8"
        assert file.attrs["dt_s"] == 10_800
        assert file["time"].encoding["calendar"] == "noleap"
        assert file["u"].attrs["standard_name"] == "eastward_wind"
        assert file["v"].attrs["standard_name"] == "northward_wind"
        assert file["vorticity"].dims == ("time", "y", "x")
        for name, variable in file.variables.items():
            assert {"standard_name", "long_name"} & set(variable.attrs), name
            assert "units" in {**variable.attrs, **variable.encoding}, name
        assert {file[name].dtype for name in output.FIELDS} == {np.dtype("float32")}
        assert file.encoding["unlimited_dims"] == {"time"}

    times = analyse.open_run(tmp_path).indexes["time"]
    assert len(times) == 61
    assert times[58] == cftime.DatetimeNoLeap(2000, 2, 28)
    assert times[59] == cftime.DatetimeNoLeap(2000, 3, 1)  # 2000 is a leap year elsewhere


def test_velocity_and_scalars_in_the_file_are_those_of_the_model(tmp_path: Path) -> None:
    assert run(tmp_path, "--days=1", "--mean-flow=5") == 0
    history = analyse.open_run(tmp_path)
    with np.load(tmp_path / "restart.npz") as saved:
        identity = json.loads(str(saved["identity"]))
    parameters = barotropic.Parameters(**SMALL, mean_flow=5.0)
    restart = output.load_restart(tmp_path / "restart.npz", parameters, identity)
    u, v = restart.velocity()
    last = history.isel(time=-1)
    np.testing.assert_array_equal(last["u"], u.astype("f4"))
    np.testing.assert_array_equal(last["v"], v.astype("f4"))
    assert float(last["u"].mean()) == pytest.approx(5.0, rel=1e-5)
    assert float(last["energy"]) == restart.energy()
    assert float(last["enstrophy"]) == restart.enstrophy()
    assert float(last["cfl"]) == restart.cfl()


# --- analysis and figure ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs of one site."""
    root = tmp_path_factory.mktemp("site")
    for name, options in {
        "wave": ("--experiment=rossby", "--days=4"),
        "inviscid": ("--experiment=inviscid", "--days=4", "--dt=600"),
        "vortices": ("--days=4", "--beta=0"),
        "jets": ("--days=4",),
    }.items():
        assert run(root / name, *options) == 0
    return root


def parents_file(path: Path, entries: list[dict[str, str]]) -> str:
    empty = {"id": "", "site": "paris", "state": "JOB_FINISHED", "workdir": None, "result": None}
    path.write_text(json.dumps([{**empty, **entry} for entry in entries]))
    return str(path)


def test_site_is_analysed_from_its_finished_members(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken"
    entries = [{"name": path.name, "workdir": str(path)} for path in site.iterdir()]
    entries.append({"name": "broken", "workdir": str(broken), "state": "FAILED"})
    entries.append({"name": "elsewhere", "site": "toulouse"})
    monkeypatch.setenv("CHAPPE_PARENTS", parents_file(tmp_path / "parents.json", entries))
    monkeypatch.setenv("CHAPPE_RESULT", str(tmp_path / "analysis.npz"))
    monkeypatch.setenv("CHAPPE_SITE", "paris")
    assert analyse.main([]) == 0

    found = results.load(tmp_path / "analysis.npz")
    assert found.site == "paris"
    assert [member.name for member in found.members] == ["inviscid", "jets", "vortices", "wave"]
    assert list(found.absent) == ["broken"]
    assert {check.quantity for check in found.checks} == {
        "sum of spectrum", "phase speed", "energy kept", "enstrophy kept", "energy gain",
        "enstrophy gain",
    }  # fmt: skip
    assert all(check.ok for check in found.checks)
    for member in found.members:
        assert member.spectrum.sum() == pytest.approx(member.energy[-1], rel=1e-5)

    # The figure, from two such results.
    second = tmp_path / "toulouse.npz"
    results.save(second, results.SiteResult("toulouse", found.members, found.checks, []))
    entries = [
        {"name": name, "result": str(tmp_path / f"{name}.npz")} for name in ("analysis", "toulouse")
    ]
    monkeypatch.setenv("CHAPPE_PARENTS", parents_file(tmp_path / "parents.json", entries))
    monkeypatch.setenv("CHAPPE_RESULT", str(tmp_path / "ensemble.png"))
    assert compare.main([]) == 0
    png = (tmp_path / "ensemble.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert [int.from_bytes(png[i : i + 4], "big") for i in (16, 20)] == [1600, 1000]
    assert 50_000 < len(png) < results.RESULT_LIMIT_BYTES


def test_a_wave_that_disagrees_with_theory_fails_the_analysis(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = barotropic.rossby_phase_speed
    monkeypatch.setattr(analyse, "rossby_phase_speed", lambda *a, **k: 1.002 * original(*a, **k))
    runs = [str(path) for path in site.iterdir()]
    assert analyse.main([f"--result={tmp_path / 'a.npz'}", *runs]) == 1
    assert "FAILED wave: phase speed" in capsys.readouterr().err
    assert not all(check.ok for check in results.load(tmp_path / "a.npz").checks)


@pytest.mark.parametrize(
    ("name", "quantity", "factor"),
    [
        ("inviscid", "energy", 0.9998),
        ("inviscid", "enstrophy", 0.998),
        ("vortices", "energy", 1.1),
        ("vortices", "enstrophy", 10.0),
    ],
)
def test_lost_or_gained_invariants_fail_their_check(
    site: Path, name: str, quantity: str, factor: float
) -> None:
    history = analyse.open_run(site / name)
    assert all(check.ok for check in analyse.check_member(name, history))
    history[quantity][-1] *= factor
    failed = [check.quantity for check in analyse.check_member(name, history) if not check.ok]
    assert failed == [f"{quantity} {'kept' if name == 'inviscid' else 'gain'}"]


def test_velocities_that_do_not_belong_to_the_vorticity_fail_their_check(site: Path) -> None:
    history = analyse.open_run(site / "jets")
    history["u"] *= 1.01
    failed = [check.quantity for check in analyse.check_member("jets", history) if not check.ok]
    assert failed == ["sum of spectrum"]


def test_a_site_without_a_wave_cannot_be_checked(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert analyse.main([f"--result={tmp_path / 'a.npz'}", str(site / "inviscid")]) == 2
    assert "no finished rossby member" in capsys.readouterr().err


def test_maps_are_thinned_to_fit_a_result() -> None:
    assert results.thinning(6, 128) == 1
    assert results.thinning(6, 512) > 1
    for count, n in ((6, 512), (40, 128), (3, 2048)):
        kept = -(-n // results.thinning(count, n))
        assert count * kept**2 * 4 < results.RESULT_LIMIT_BYTES


# --- the ensemble -------------------------------------------------------------------------------


def arguments(member: Any) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in member.parameters.items()]


def app(name: str) -> dict[str, Any]:
    return tomllib.loads((EXAMPLE / "apps" / f"{name}.toml").read_text(encoding="utf-8"))


def test_ensemble_has_twelve_members_of_which_one_fails() -> None:
    assert len({member.name for member in members.MEMBERS}) == len(members.MEMBERS) == 12
    assert [m.expected_state for m in members.MEMBERS].count("FAILED") == 1
    for name in members.SITES:
        experiments = [m.parameters["experiment"] for m in members.MEMBERS if m.site == name]
        assert len(experiments) == 6
        assert {"turbulence", "rossby", "inviscid"} == set(experiments)


def test_members_use_the_parameters_of_the_app_and_of_the_command_line() -> None:
    known = app("barotropic")["parameters"]
    for member in members.MEMBERS:
        assert set(member.parameters) <= set(known), member.name
        model._parser().parse_args(arguments(member))


def test_app_and_command_line_agree_on_the_defaults() -> None:
    definition = app("barotropic")
    command = " ".join(definition["command"])
    for name, parameter in definition["parameters"].items():
        assert f"{{{{ {name} }}}}" in command
        command = command.replace(f"{{{{ {name} }}}}", str(parameter["default"]))
    assert command.startswith("@PYTHON@ @CODE@/model.py ")
    given = vars(model._parser().parse_args(command.split()[2:]))
    assert given == vars(model._parser().parse_args([]))


@pytest.mark.parametrize("name", ["barotropic", "analyse", "compare"])
def test_apps_name_scripts_that_exist(name: str) -> None:
    definition = app(name)
    assert definition["name"] == name
    script = definition["command"][1].removeprefix("{{ code }}/")
    assert (EXAMPLE / script).is_file()
