import pytest


@pytest.fixture(params=[True, False], ids=["slycot", "own"])
def use_slycot(request):
    if request.param:
        pytest.importorskip("slycot")
    return request.param
