import pytest
import torch

from tests.strategies import cores_of
from ttnet.algebra import add, hadamard
from ttnet.implicit import DenseSite, ProductSite, SumSite


def sites():
    """Pairs of a site and the core that it stands for, of an inner site of complex trains."""
    a, b, c = [
        cores_of("random", (3, 4, 3), ranks, torch.complex128, 0)[1] for ranks in ([2, 3], [4, 2], [2, 3])
    ]
    pad = torch.ones(1, 4, 1, dtype=a.dtype)

    def formed(x, y):
        """The inner core of the sum of three-core trains."""
        return add([pad[:, :, :1].expand(1, 4, len(x)), x, pad.expand(x.shape[2], 4, 1)],
                   [pad.expand(1, 4, len(y)), y, pad.expand(y.shape[2], 4, 1)])[1]  # fmt: skip

    return [
        (DenseSite(a), a),
        (SumSite([a, b]), formed(a, b)),
        (SumSite([a, c]), formed(a, c)),
        (ProductSite(a, b), hadamard([a], [b])[0]),
    ]


@pytest.mark.parametrize("which", range(4))
def test_a_site_acts_as_its_core_does(which):
    site, core = sites()[which]
    left, mode, right = core.shape
    assert (site.left_rank, site.mode, site.right_rank) == (left, mode, right)
    carry = torch.randn(5, left, dtype=core.dtype)
    expected = torch.einsum("ql,lnr->qnr", carry, core).reshape(-1, right)
    torch.testing.assert_close(site.absorb_left(carry), expected)
    carry = torch.randn(right, 5, dtype=core.dtype)
    expected = torch.einsum("lnr,rp->lnp", core, carry).reshape(left, -1)
    torch.testing.assert_close(site.absorb_right(carry), expected)
    block = torch.randn(left * mode, 5, dtype=core.dtype)
    expected = torch.einsum("lnr,lnc->rc", core.conj(), block.reshape(left, mode, 5))
    torch.testing.assert_close(site.close_left(block), expected)
    block = torch.randn(5, mode * right, dtype=core.dtype)
    expected = torch.einsum("lnr,cnr->cl", core.conj(), block.reshape(5, mode, right))
    torch.testing.assert_close(site.close_right(block), expected)
    single = site.to(torch.complex64)
    torch.testing.assert_close(single.close_right(block.to(torch.complex64)), expected.to(torch.complex64))
