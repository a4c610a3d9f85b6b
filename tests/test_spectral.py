"""Random trains have the singular values that were asked for."""

import pytest
import torch

from tests import dense
from ttnet.cores import check, contract, ranks_of
from ttnet.errors import ConfigError, RankError, ShapeError
from ttnet.gauge import spectra
from ttnet.spectral import random_with_spectra


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128, torch.float32])
def test_every_bond_has_its_spectrum(dtype) -> None:
    wanted = [[3.0, 1.0], [2.0, 1.0, 0.5, 0.1], [1.0, 0.7, 1e-3], [1.0]]
    cores = check(random_with_spectra((3, 4, 3, 4, 5), wanted, norm=2.0, seed=0, dtype=dtype))
    full = dense.full(cores)
    assert dense.norm(full) == pytest.approx(2.0, rel=1e-5)
    for bond, values in enumerate(wanted):
        expected = torch.tensor(values, dtype=torch.float64)
        expected = 2.0 * expected / expected.norm()
        found = torch.from_numpy(dense.spectrum(full, bond))
        tolerance = 1e-6 if dtype == torch.float32 else 1e-10
        assert torch.allclose(found[: len(values)], expected, rtol=0, atol=tolerance)
        assert float(found[len(values) :].abs().sum()) < 10 * tolerance


def test_one_decaying_spectrum_for_all_bonds() -> None:
    decay = 0.5 ** torch.arange(8, dtype=torch.float64)
    cores = random_with_spectra((4,) * 6, decay, seed=1, dtype=torch.float64)
    assert ranks_of(cores) == (1, 4, 8, 8, 8, 4, 1)
    for found in spectra(cores):
        expected = decay[: len(found)] / decay[: len(found)].norm()
        assert torch.allclose(found, expected, rtol=1e-6, atol=1e-11)


def test_it_is_canonical_and_seeded() -> None:
    a, b, c = (
        random_with_spectra((3, 4, 3), [[1, 0.5], [1, 0.2]], seed=s, dtype=torch.float64) for s in (3, 3, 4)
    )
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not torch.equal(a[0], c[0])
    for core in a[1:]:
        rows = core.flatten(1)
        assert torch.allclose(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64), atol=1e-12)
    assert contract(random_with_spectra((3,), [], norm=5.0, seed=0)).norm() == pytest.approx(5.0)


def test_what_no_train_has_is_refused() -> None:
    # Two indices of the middle mode cannot turn one direction into four equal ones.
    with pytest.raises(ConfigError, match=r"spectra: .* none for mode 1 of size 2 between"):
        random_with_spectra((4, 2, 4), [[1.0, 1e-3], [1.0, 1.0, 1.0, 1.0]], seed=0)
    with pytest.raises(RankError, match=r"spectra: expected at most 3 values at bond 0, got 4"):
        random_with_spectra((3, 4), [[1.0, 1.0, 1.0, 1.0]])
    with pytest.raises(ConfigError, match=r"spectra: expected positive numbers at bond 0"):
        random_with_spectra((3, 4), [[1.0, 0.0]])
    with pytest.raises(ShapeError, match=r"spectra: expected one vector for each of the 1 bonds, got 2"):
        random_with_spectra((3, 4), [[1.0], [1.0]])
