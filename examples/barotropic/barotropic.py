"""Barotropic vorticity on a doubly periodic beta-plane: a pseudo-spectral model in NumPy.

The model solves, for the relative vorticity ζ of a non-divergent flow on a square of side L,

    ∂ζ/∂t + (U + u) ∂ζ/∂x + v ∂ζ/∂y + β v = -D ∇⁸ζ,
    ζ = ∇²ψ,   u = -∂ψ/∂y,   v = ∂ψ/∂x,

where U is a constant zonal mean flow, β the meridional gradient of the Coriolis parameter and D a
hyperviscosity (Vallis 2017, *Atmospheric and Oceanic Fluid Dynamics*, section 6.4 for the waves and
chapters 11 and 12 for the turbulence; McWilliams 1984, J. Fluid Mech. 146, 21-43, for the decay of
turbulence into isolated vortices; Rhines 1975, J. Fluid Mech. 69, 417-443, for what β makes of it).

How it is solved:

- *Space.* Fourier modes. Products are formed on the grid, and modes with a wavenumber of n/3 or more
  along either axis are removed (the 2/3 rule, Orszag 1971, J. Atmos. Sci. 28, 1074), so that
  quadratic terms are free of aliasing. The truncated equations conserve energy and enstrophy
  exactly when D = 0: all drift comes from the time step.
- *Advection* in the form of Basdevant (1983, J. Comput. Phys. 50, 209-214),
  u·∇ζ = (∂²/∂x² - ∂²/∂y²) uv + ∂²/∂x∂y (v² - u²): four transforms per tendency instead of five.
- *Time.* Fourth-order Runge-Kutta with the hyperviscosity as an exact integrating factor
  (Trefethen 2000, *Spectral Methods in MATLAB*, program 27), so that D does not limit the step.

Arrays: a field on the grid is real, of shape (n, n), indexed [y, x]. Its spectrum is complex, of
shape (n, n//2 + 1), indexed [l, k], and scaled so that the mean of f² is the weighted sum of |f̂|².
Units are SI throughout. "Mode" m stands for the wavenumber 2πm/L.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float64]
Spectrum = npt.NDArray[np.complex128]

DAY_S = 86_400.0

CFL_LIMIT = 2 * math.sqrt(2) / (2 * math.pi / 3)
"""CFL number (of `Model.cfl`) below which RK4 is stable for the highest mode kept, about 1.35.

RK4 is stable for oscillations with ω dt ≤ 2√2; the shortest wave kept has 2/3 of the grid's
wavenumber π/dx, and the flow carries it past a point with ω ≤ (|u| + |v|) (2π/3)/dx.
"""

ENERGY_GAIN_LIMIT = 2.0
"""Energy over initial energy above which a run counts as unstable.

Nothing forces the flow and hyperviscosity only removes energy, so any gain beyond rounding is a
numerical instability; by a factor of two it is far beyond doubt, and still far from overflow.
"""


class BlowUpError(ArithmeticError):
    """The run became numerically unstable. The message names step, time and CFL number."""


class Grid:
    """A square doubly periodic grid and the spectral operators on it.

    `n` is the number of points along each side (even), `length_m` the side in metres.
    """

    def __init__(self, n: int, length_m: float) -> None:
        if n < 8 or n % 2:
            raise ValueError(f"n must be even and at least 8, not {n}")
        if not length_m > 0:
            raise ValueError(f"length_m must be positive, not {length_m}")
        self.n = n
        self.length_m = length_m
        self.spacing_m = length_m / n
        self.x_m: Field = (np.arange(n, dtype=np.float64) + 0.5) * self.spacing_m
        """Coordinates of the points along either axis, shape (n,), m."""

        unit = 2 * math.pi / length_m
        mode_x = np.asarray(np.fft.rfftfreq(n, 1 / n), np.float64)[np.newaxis, :]
        mode_y = np.asarray(np.fft.fftfreq(n, 1 / n), np.float64)[:, np.newaxis]
        self.k: Field = unit * mode_x
        """Zonal wavenumbers, shape (1, n//2 + 1), rad m-1."""
        self.l: Field = unit * mode_y
        """Meridional wavenumbers, shape (n, 1), rad m-1."""
        self.k2: Field = self.k**2 + self.l**2
        """Squared total wavenumber, shape (n, n//2 + 1), rad² m-2."""
        self.mode: Field = np.hypot(mode_x, mode_y)
        """Total wavenumber in units of 2π/L, shape (n, n//2 + 1)."""
        self.kept: npt.NDArray[np.bool_] = (np.abs(mode_x) < n / 3) & (np.abs(mode_y) < n / 3)
        """Modes that survive the 2/3 rule, shape (n, n//2 + 1)."""

        # The domain mean of ψ is arbitrary and that of ζ is zero: both stay zero.
        nonzero = np.where(self.k2 > 0, self.k2, np.inf)
        self.inverse_laplacian: Field = -1 / nonzero
        # A real field has conjugate pairs of modes, of which the half-spectrum holds one; only the
        # columns k = 0 and Nyquist hold both.
        pairs = np.full((1, n // 2 + 1), 2.0)
        pairs[0, [0, -1]] = 1.0
        self.enstrophy_weight: Field = 0.5 * np.broadcast_to(pairs, self.k2.shape)
        self.energy_weight: Field = self.enstrophy_weight / nonzero

    @property
    def cutoff(self) -> float:
        """The largest wavenumber kept along an axis, rad m-1."""
        return float(self.k[self.kept[:1]].max())

    def to_spectrum(self, field: npt.ArrayLike) -> Spectrum:
        """Fourier coefficients, shape (…, n, n//2 + 1), of a field of shape (…, n, n)."""
        # In double precision whatever the field's: NumPy would transform float32 as float32.
        return np.fft.rfft2(np.asarray(field, np.float64), norm="forward")

    def to_grid(self, spectrum: Spectrum) -> Field:
        """The field, shape (…, n, n), of Fourier coefficients of shape (…, n, n//2 + 1)."""
        return np.fft.irfft2(spectrum, s=(self.n, self.n), norm="forward")

    def velocity(self, vorticity: Spectrum) -> tuple[Field, Field]:
        """Velocity (u, v) in m s-1, each of shape (n, n), of a vorticity spectrum in s-1."""
        psi = self.inverse_laplacian * vorticity
        return self.to_grid(-1j * self.l * psi), self.to_grid(1j * self.k * psi)

    def energy(self, vorticity: Spectrum) -> float:
        """Mean kinetic energy ½⟨u² + v²⟩ of the flow without its mean, m² s-2 (J kg-1)."""
        return _weighted_power(self.energy_weight, vorticity)

    def enstrophy(self, vorticity: Spectrum) -> float:
        """Mean enstrophy ½⟨ζ²⟩, s-2."""
        return _weighted_power(self.enstrophy_weight, vorticity)

    def energy_spectrum(self, vorticity: Spectrum) -> Field:
        """Isotropic kinetic-energy spectrum: element m is the energy (m² s-2) in the shell of modes
        whose total wavenumber rounds to m·2π/L. The elements sum to `energy` (Parseval).
        """
        density = self.energy_weight * (vorticity.real**2 + vorticity.imag**2)
        shell = np.rint(self.mode).astype(int)
        return np.bincount(shell.ravel(), weights=density.ravel()).astype(np.float64)


def _weighted_power(weight: Field, spectrum: Spectrum) -> float:
    return float(np.vdot(weight, spectrum.real**2 + spectrum.imag**2))


@dataclass(frozen=True, slots=True)
class Parameters:
    """What defines a run apart from its initial vorticity."""

    n: int = 128
    """Grid points along each side."""
    length_m: float = 2.0e7
    """Side of the domain, m."""
    dt_s: float = 1800.0
    """Time step, s."""
    beta: float = 1.6e-11
    """Meridional gradient of the Coriolis parameter, m-1 s-1 (1.6e-11 is that of 45° N)."""
    mean_flow: float = 0.0
    """Constant zonal flow U, m s-1."""
    efold_h: float = 12.0
    """Time in which hyperviscosity damps the cutoff wavenumber by e, h; 0 for an inviscid flow."""

    def __post_init__(self) -> None:
        if not self.dt_s > 0:
            raise ValueError(f"dt_s must be positive, not {self.dt_s}")
        if not self.efold_h >= 0:
            raise ValueError(f"efold_h must not be negative: {self.efold_h}")


class Model:
    """A barotropic flow that can be stepped forward.

    `vorticity` is the initial relative vorticity as a spectrum, shape (n, n//2 + 1), s-1. `step`
    and `initial_energy` (m² s-2) are given only to continue an earlier run.
    """

    def __init__(
        self,
        parameters: Parameters,
        vorticity: Spectrum,
        *,
        step: int = 0,
        initial_energy: float | None = None,
    ) -> None:
        self.parameters = parameters
        self.grid = Grid(parameters.n, parameters.length_m)
        self.vorticity: Spectrum = vorticity.copy()
        self.vorticity[~self.grid.kept] = 0
        self.step_number = step
        self.initial_energy = self.energy() if initial_energy is None else initial_energy

        grid = self.grid
        self._advection = (grid.k**2 - grid.l**2) * grid.kept, grid.k * grid.l * grid.kept
        # The linear terms -U ∂ζ/∂x - β ∂ψ/∂x move every mode with its Rossby wave speed.
        speed = parameters.mean_flow + parameters.beta * grid.inverse_laplacian
        self._waves: Spectrum = np.asarray(-1j * grid.k * speed, np.complex128)
        self._half_decay: Field = np.exp(-self._damping_rate() * parameters.dt_s / 2)

    def _damping_rate(self) -> Field:
        if not self.parameters.efold_h:
            return np.zeros_like(self.grid.k2)
        efold_s = 3600 * self.parameters.efold_h
        return (self.grid.k2 / self.grid.cutoff**2) ** 4 / efold_s

    @property
    def time_s(self) -> float:
        """Model time since the initial state, s."""
        return self.step_number * self.parameters.dt_s

    def tendency(self, vorticity: Spectrum) -> Spectrum:
        """Rate of change of the vorticity spectrum without the hyperviscosity, s-2."""
        u, v = self.grid.velocity(vorticity)
        stretch, shear = self._advection
        advection = stretch * self.grid.to_spectrum(u * v)
        advection += shear * self.grid.to_spectrum(v * v - u * u)
        return advection + self._waves * vorticity

    def step(self) -> None:
        """Advance by one time step; raise `BlowUpError` when the flow has become unstable."""
        dt, zeta, decay = self.parameters.dt_s, self.vorticity, self._half_decay
        # Overflow in an unstable step is not an accident but a finding: `_check` reports it.
        with np.errstate(over="ignore", invalid="ignore"):
            half = decay * zeta
            a = self.tendency(zeta)
            b = self.tendency(half + (dt / 2) * decay * a)
            c = self.tendency(half + (dt / 2) * b)
            d = self.tendency(decay * (half + dt * c))
            self.vorticity = decay * (half + (dt / 6) * (decay * a + 2 * (b + c))) + (dt / 6) * d
            self.step_number += 1
            self._check()

    def _check(self) -> None:
        gain = self.energy() / self.initial_energy if self.initial_energy else 1.0
        if gain <= ENERGY_GAIN_LIMIT:
            return
        raise BlowUpError(
            f"blow-up at step {self.step_number}, day {self.time_s / DAY_S:.3f}: the energy is "
            f"{gain:.3g} times the initial energy, though nothing forces the flow; CFL number "
            f"{self.cfl():.3g} (limit {CFL_LIMIT:.2f}), time step {self.parameters.dt_s:g} s: "
            "choose a shorter one"
        )

    def velocity(self) -> tuple[Field, Field]:
        """Velocity (U + u, v) on the grid, each of shape (n, n), m s-1."""
        u, v = self.grid.velocity(self.vorticity)
        return u + self.parameters.mean_flow, v

    def energy(self) -> float:
        """Mean kinetic energy of the flow without its mean, m² s-2."""
        return self.grid.energy(self.vorticity)

    def enstrophy(self) -> float:
        """Mean enstrophy, s-2."""
        return self.grid.enstrophy(self.vorticity)

    def cfl(self) -> float:
        """CFL number: the largest (|u| + |v|) dt/dx, in grid lengths per step."""
        u, v = self.velocity()
        speed = float((np.abs(u) + np.abs(v)).max())
        return speed * self.parameters.dt_s / self.grid.spacing_m


def random_vorticity(
    grid: Grid, seed: int, *, rms_speed: float = 10.0, peak_mode: float = 6.0
) -> Spectrum:
    """Vorticity spectrum (s-1) of a random flow for decaying turbulence.

    Phases are random, the energy spectrum is E(m) ~ m / (1 + (m/m₀)⁴) with m₀ = `peak_mode`
    (after McWilliams 1984), scaled to the root-mean-square velocity `rms_speed` in m s-1.
    """
    noise = grid.to_spectrum(np.random.default_rng(seed).normal(size=(grid.n, grid.n)))
    # White noise has the energy spectrum m·|ζ̂|²/m²; this filter brings it to the one asked for.
    shape = grid.mode / np.sqrt(1 + (grid.mode / peak_mode) ** 4)
    vorticity = noise * shape * grid.kept
    return vorticity * (rms_speed / math.sqrt(2 * grid.energy(vorticity)))


def rossby_wave(grid: Grid, mode_x: int, mode_y: int, *, rms_speed: float = 10.0) -> Spectrum:
    """Vorticity spectrum (s-1) of one plane wave with velocity `rms_speed` (m s-1).

    A plane wave does not advect itself, so it solves the nonlinear equation exactly and moves with
    `rossby_phase_speed` whatever its amplitude.
    """
    if not (0 < mode_x < grid.n / 3 and abs(mode_y) < grid.n / 3):
        raise ValueError(
            f"mode ({mode_x}, {mode_y}) is not resolved: 0 < mode_x < n/3 and |mode_y| < n/3, "
            f"n/3 = {grid.n / 3:.1f}"
        )
    vorticity = np.zeros(grid.k2.shape, dtype=np.complex128)
    vorticity[mode_y, mode_x] = 1.0
    return vorticity * (rms_speed / math.sqrt(2 * grid.energy(vorticity)))


def rossby_phase_speed(
    grid: Grid, mode_x: int, mode_y: int, *, beta: float, mean_flow: float = 0.0
) -> float:
    """Zonal phase speed c = U - β/(k² + l²) of a barotropic Rossby wave, m s-1 (Vallis, 6.4).

    `beta` in m-1 s-1, `mean_flow` in m s-1.
    """
    return mean_flow - beta / float(grid.k2[mode_y, mode_x])
