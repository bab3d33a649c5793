"""Built-in networks, user factories, weight files."""

import importlib
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from rlprune.backbones import build_backbone, load_weights
from rlprune.config import BackboneConfig
from rlprune.errors import BackboneError

NAMES = ("m_cifarnet", "resnet20", "resnet32", "resnet56", "vgg16_bn", "resnet18", "mobilenet_v2")


def small(name: str, in_channels: int = 1, **settings: object) -> nn.Module:
    """A built-in network, narrow where it can be."""
    width = 1.0 if name == "resnet18" else 0.25
    config = BackboneConfig(name=name, width=width, **settings)
    return build_backbone(config, 5, (in_channels, 8, 8))


def parameters(module: nn.Module, kind: type[nn.Module] = nn.Module) -> int:
    parts = (part for part in module.modules() if isinstance(part, kind))
    return sum(p.numel() for part in parts for p in part.parameters(recurse=False))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_built_ins_map_images_to_class_scores(name: str, shape: tuple[int, int, int]) -> None:
    module = small(name, shape[0])
    assert module.training
    assert module(torch.randn(2, *shape)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        # 3x3 stem, 6n convolutions, two numbers per BatchNorm channel, linear 64 -> 10:
        # 432 + 13,824 + 50,688 + 202,752 + 1,376 + 650 (He et al.: 0.27 M, 0.46 M, 0.85 M)
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet56", 853_018),
        ("resnet18", 11_181_642),  # torchvision's 11,689,512 with 10 instead of 1000 classes
        ("mobilenet_v2", 2_236_682),  # likewise 3,504,872
    ],
)
def test_parameters_at_width_1(name: str, count: int) -> None:
    module = build_backbone(BackboneConfig(name=name), 10, (3, 32, 32))
    assert parameters(module) == count


def test_m_cifarnet_layers() -> None:
    module = build_backbone(BackboneConfig(), 10, (3, 32, 32))
    convs = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [64, 64, 128, 128, 128, 192, 192, 192]
    assert [conv.stride[0] for conv in convs] == [1, 1, 2, 1, 1, 2, 1, 1]
    assert [conv.padding[0] for conv in convs] == [0, 1, 1, 1, 1, 1, 1, 1]
    assert parameters(module, nn.Conv2d) == 1_291_968
    names = [name for name, part in module.named_modules() if isinstance(part, nn.Dropout2d)]
    assert names == ["features.3.dropout", "features.6.dropout"]


def test_vgg16_bn_has_13_convolutions_and_one_linear_layer() -> None:
    module = build_backbone(BackboneConfig(name="vgg16_bn"), 10, (3, 32, 32))
    kinds = [type(part) for part in module.modules()]
    assert kinds.count(nn.Conv2d) == kinds.count(nn.BatchNorm2d) == 13
    assert kinds.count(nn.Linear) == 1
    assert parameters(module, nn.Conv2d) == 14_710_464


@pytest.mark.parametrize("name", ["m_cifarnet", "resnet20", "vgg16_bn"])
def test_width_is_rounded_and_never_below_one_channel(name: str) -> None:
    module = build_backbone(BackboneConfig(name=name, width=0.001), 3, (1, 8, 8))
    channels = {part.out_channels for part in module.modules() if isinstance(part, nn.Conv2d)}
    assert channels <= {1}
    assert module(torch.randn(2, 1, 8, 8)).shape == (2, 3)


def test_weights_are_drawn_after_he() -> None:
    torch.manual_seed(0)
    module = build_backbone(BackboneConfig(), 10, (3, 32, 32))
    weight = [part for part in module.modules() if isinstance(part, nn.Conv2d)][3].weight
    assert weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)  # fan out


def test_resnet18_refuses_a_width() -> None:
    with pytest.raises(BackboneError, match=r"backbone\.width: resnet18 has one width only"):
        build_backbone(BackboneConfig(name="resnet18", width=0.5), 10, (3, 32, 32))


def test_missing_torchvision_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(BackboneError, match="needs torchvision"):
        small("resnet18")


# --- the user's own network ---------------------------------------------------------------

FACTORIES = """
from torch import nn

def both(num_classes, in_channels):
    return nn.Sequential(nn.Conv2d(in_channels, num_classes, 3), nn.Flatten())

def any_keyword(**settings):
    return both(**settings)

def classes_only(num_classes=2):
    return nn.Linear(1, num_classes)

def nothing():
    return nn.Linear(1, 4)

class Nested:
    @staticmethod
    def build(*, in_channels):
        return nn.Conv2d(in_channels, 9, 3)

def fails(num_classes):
    raise ValueError("no such thing")

def no_network():
    return {"net": 1}

number = 3
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module with factories that lies in the current folder, outside sys.path."""
    name = "factories_of_the_user"
    (tmp_path / f"{name}.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    return name


def from_factory(path: str, **settings: object) -> nn.Module:
    return build_backbone(BackboneConfig(factory=path, **settings), 7, (2, 8, 8))


def test_factory_gets_the_arguments_that_it_accepts(factories: str) -> None:
    path_before = list(sys.path)
    for function in ("both", "any_keyword"):
        conv = from_factory(f"{factories}:{function}")[0]
        assert (conv.in_channels, conv.out_channels) == (2, 7)
    assert from_factory(f"{factories}:classes_only").out_features == 7
    assert from_factory(f"{factories}:nothing").out_features == 4
    assert from_factory(f"{factories}:Nested.build").in_channels == 2
    assert sys.path == path_before


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("{}:fails", r"fails\(num_classes=7\) failed with ValueError: no such thing"),
        ("{}:no_network", "returned a dict, not a torch.nn.Module"),
        ("{}:absent", "has no attribute 'absent'"),
        ("{}:number", "is a int and cannot be called"),
        ("{}", "must read 'package.module:function'"),
        (":both", "must read 'package.module:function'"),
        ("no_such_package_anywhere:f", "'no_such_package_anywhere' cannot be imported"),
    ],
)
def test_bad_factories_are_refused(factories: str, path: str, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        from_factory(path.format(factories))


def test_factory_refuses_a_width_that_would_be_ignored(factories: str) -> None:
    with pytest.raises(BackboneError, match=r"backbone\.width: has no effect on the factory"):
        from_factory(f"{factories}:both", width=0.5)


# --- weight files ---------------------------------------------------------------------------


def randomised(name: str = "m_cifarnet") -> nn.Module:
    module = small(name)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return module


def same_state(left: nn.Module, right: nn.Module) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_are_loaded(tmp_path: Path, wrap: bool, prefix: str, legacy: bool) -> None:
    source = randomised()
    state = {prefix + key: value for key, value in source.state_dict().items()}
    path = tmp_path / "net.pt"
    torch.save(
        {"state_dict": state, "epoch": 3} if wrap else state,
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    assert same_state(small("m_cifarnet", weights=str(path)), source)


def test_weights_of_a_network_with_a_part_called_module(tmp_path: Path) -> None:
    source = nn.DataParallel(randomised())
    torch.save(source.state_dict(), tmp_path / "net.pt")
    target = nn.DataParallel(small("m_cifarnet"))
    load_weights(target, tmp_path / "net.pt")
    assert same_state(target, source)


def test_weights_without_batch_counters_are_accepted(tmp_path: Path) -> None:
    source = randomised()
    state = {k: v for k, v in source.state_dict().items() if "num_batches_tracked" not in k}
    torch.save(state, tmp_path / "net.pt")
    assert same_state(small("m_cifarnet", weights=str(tmp_path / "net.pt")), source)


def test_all_misfits_are_listed_at_once_up_to_five_each(tmp_path: Path) -> None:
    state = dict(randomised().state_dict())
    for index in range(8):
        del state[f"features.{index}.norm.weight"]
    state["surplus"] = torch.zeros(1)
    state["classifier.bias"] = torch.zeros(10)
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(BackboneError) as caught:
        small("m_cifarnet", weights=str(tmp_path / "net.pt"))
    message = str(caught.value)
    assert "8 missing: features.0.norm.weight" in message
    assert "features.4.norm.weight and 3 more" in message
    assert "features.5.norm.weight" not in message
    assert "1 unexpected: surplus" in message
    assert "1 of another shape: classifier.bias (file (10,), network (5,))" in message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"absent\.pt' does not exist"):
        small("m_cifarnet", weights=str(tmp_path / "absent.pt"))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="cannot be read"):
        small("m_cifarnet", weights=str(tmp_path))


@pytest.mark.parametrize("damage", ["empty", "noise", "truncated", "bit flips"])
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "net.pt"
    torch.save(small("m_cifarnet").state_dict(), path)
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "empty": b"",
            "noise": bytes(range(256)) * 10,
            "truncated": content[:middle],
            "bit flips": bytes(255 - byte for byte in content[:200]) + content[200:],
        }[damage]
    )
    with pytest.raises(BackboneError, match=r"net\.pt' is damaged"):
        small("m_cifarnet", weights=str(path))


class Malicious:
    """Unpickling an instance creates the file that it names."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.victim), "w"))


@pytest.mark.parametrize("plain_pickle", [False, True])
def test_code_in_a_weight_file_is_not_executed(tmp_path: Path, plain_pickle: bool) -> None:
    path, victim = tmp_path / "net.pt", tmp_path / "executed"
    content = {**small("m_cifarnet").state_dict(), "extra": Malicious(victim)}
    if plain_pickle:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(BackboneError, match="pickled code is never run"):
        small("m_cifarnet", weights=str(path))
    assert not victim.exists()
    pickle.loads(pickle.dumps(Malicious(victim))).close()
    assert victim.exists()  # the trap itself works


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {"a": 1}, {1: torch.zeros(1)}])
def test_other_content_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(BackboneError, match="holds no state dict"):
        small("m_cifarnet", weights=str(tmp_path / "net.pt"))
