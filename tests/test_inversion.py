"""Photos -> styles: what the generator made is found again, other things are recognized, and frames have a way back."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from annotation_folders import blocks, export_to, write_masks
from conftest import SCHEMA, small_labeled
from PIL import Image

from dsgan_datasets import AnnotatedImages, DSGANDataset, LabeledGenerator, fit_interpreter, sample_latents
from dsgan_datasets.annotations import AnnotationError, load_annotations
from dsgan_datasets.contents import ContentError
from dsgan_datasets.export import export
from dsgan_datasets.fitting import FitSettings
from dsgan_datasets.generators.synthesis import synthesize
from dsgan_datasets.images import png
from dsgan_datasets.inversion import (
    Alignment,
    Inversion,
    InversionSettings,
    Inverter,
    LabeledPhotos,
    Photos,
    evaluate_photos,
    export_photos,
    invert_photos,
    read_labels,
    read_photos,
    read_styles,
)
from dsgan_datasets.inversion.domain import Domain, image_statistics
from dsgan_datasets.inversion.photos import upright
from dsgan_datasets.recipe import Recipe
from dsgan_datasets.samples import SampleBatch
from dsgan_datasets.tools.cli import main

OWN = range(1_000_000, 1_000_002)


#: (H, W) of the images of `small_labeled`.
SIZE = (16, 16)


@pytest.fixture(scope="module")
def labeled() -> LabeledGenerator:
    return small_labeled()


@pytest.fixture(scope="module")
def inverter(labeled: LabeledGenerator) -> Inverter:
    return Inverter(labeled.generator, labeled.recipe, InversionSettings(steps=5))


def own_styles(labeled: LabeledGenerator, indices: range = OWN) -> torch.Tensor:
    z = sample_latents(indices, labeled.generator.z_dim, seed=0)
    return labeled.generator.mapping(z, truncation_psi=labeled.recipe.truncation_psi)


def own_images(labeled: LabeledGenerator, indices: range = OWN) -> torch.Tensor:
    return synthesize(labeled.generator, labeled.recipe, own_styles(labeled, indices))[0]


def save(folder: Path, images: torch.Tensor, name: str = "photo") -> Path:
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(images):
        (folder / f"{name}{number}.png").write_bytes(png(image))
    return folder


def jpeg(size: tuple[int, int], **options: object) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.extended
def test_images_of_the_generator_are_found_again() -> None:
    labeled = LabeledGenerator.from_pretrained("demo-faces", device="cpu", reject_fraction=0.0)
    images = own_images(labeled)
    found = Inverter(labeled.generator, labeled.recipe, InversionSettings(steps=100)).invert(images)
    error = (found.images.float() - images.float()).square().mean((1, 2, 3))
    assert float((10 * torch.log10(255**2 / error)).median()) > 30
    true, again = (labeled.labeler.label(ws, labeled.recipe)["mask"] for ws in (own_styles(labeled), found.styles))
    assert float((true == again).float().mean()) > 0.97
    assert bool(found.trusted.all())


@pytest.mark.slow
def test_the_same_photos_give_the_same_styles(labeled: LabeledGenerator, inverter: Inverter) -> None:
    images = own_images(labeled)
    first, again = inverter.invert(images), inverter.invert(images)
    assert first.styles.equal(again.styles)
    assert not first.styles[0].equal(first.styles[1])


@pytest.mark.slow
def test_more_steps_reconstruct_better(labeled: LabeledGenerator, inverter: Inverter) -> None:
    images = own_images(labeled)
    more = Inverter(labeled.generator, labeled.recipe, InversionSettings(steps=12)).invert(images)
    assert bool((more.errors < inverter.invert(images).errors).all())


@pytest.mark.slow
def test_styles_to_start_from_are_kept(labeled: LabeledGenerator, inverter: Inverter) -> None:
    images = own_images(labeled)
    true = own_styles(labeled)
    assert bool((inverter.invert(images, true).errors < 0.5 * inverter.invert(images).errors).all())


def test_plain_images_are_foreign_and_draws_are_not(labeled: LabeledGenerator, inverter: Inverter) -> None:
    plain = torch.tensor([50, 128, 200], dtype=torch.uint8)[:, None, None, None].expand(3, 3, *SIZE)
    found = inverter.invert(torch.cat([plain, own_images(labeled)]))
    assert found.trusted.tolist() == [False, False, False, True, True]
    assert found.styles[0].equal(found.styles[1]) and found.errors[:3].tolist() == [1, 1, 1]
    assert found.styles[3:].equal(inverter.invert(own_images(labeled)).styles)
    distances = inverter.domain.distances(own_images(labeled, range(2_000_000, 2_000_032)).float() / 127.5 - 1)
    assert (distances < inverter.domain.limit).sum() >= 31


def test_a_domain_notices_missing_details() -> None:
    random = torch.Generator().manual_seed(0)
    draws = torch.rand(256, 3, 32, 32, generator=random) * 2 - 1
    domain = Domain.of(image_statistics(draws))
    smooth = torch.nn.functional.avg_pool2d(draws[:4], 3, 1, 1)
    assert bool((domain.distances(draws) <= domain.limit).all())
    assert bool((domain.distances(smooth) > domain.limit).all())


def test_rounding_is_not_foreign_where_all_draws_are_alike() -> None:
    """Around a scan, or on a white sheet, draws do not vary at all; another background is foreign all the same."""
    random = torch.Generator().manual_seed(0)
    draws = torch.full((128, 3, 32, 32), -0.9234)
    draws[:, :, 8:24, 8:24] = torch.rand(128, 3, 16, 16, generator=random) * 2 - 1
    domain = Domain.of(image_statistics(draws))
    photos = (draws[:8] * 127.5 + 127.5).round() / 127.5 - 1
    assert bool((domain.distances(photos) <= domain.limit).all())
    assert bool((domain.distances(photos.where(photos != photos[0, 0, 0, 0], -0.6)) > domain.limit).all())


def test_photos_of_another_size_are_refused(inverter: Inverter) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[N, 3, 16, 16\].*\[1, 3, 32, 32\]: align them first"):
        inverter.invert(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


# Alignment


def test_points_go_to_the_photo_and_back() -> None:
    template = np.array([[20.0, 20.0], [44.0, 20.0], [32.0, 44.0]])
    turn = np.array([[0.0, 2.0], [-2.0, 0.0]])  # a quarter, at twice the size
    points = template @ turn + np.array([100.0, 200.0])
    alignment = Alignment.keypoints(points, template, (300, 400), (64, 64))
    assert np.allclose(alignment.to_photo(template), points)
    assert np.allclose(alignment.to_frame(points), template)
    assert alignment.scale == pytest.approx(2)
    assert np.allclose(Alignment.from_dict(json.loads(json.dumps(alignment.to_dict()))).matrix, alignment.matrix)


def test_a_mask_comes_back_to_its_place_in_the_photo() -> None:
    mask = np.zeros((200, 300), np.int64)
    mask[60:140, 100:180] = 3
    alignment = Alignment.box((80, 40, 200, 160), (200, 300), (64, 64))
    back = alignment.in_photo(alignment.mask(mask, 255), 255)
    inside = back != 255
    assert inside.sum() == 120 * 120
    assert (back == mask)[inside].mean() > 0.97


def test_a_half_sized_frame_averages_the_pixels_of_the_photo() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    frame = Alignment.center((8, 8), (4, 4)).image(Image.fromarray(pixels))
    expected = pixels.reshape(4, 2, 4, 2, 3).mean((1, 3)).transpose(2, 0, 1)
    assert np.abs(frame.numpy() - expected).max() <= 1


def test_photos_that_are_too_small_are_refused() -> None:
    with pytest.raises(ContentError, match="is too small: its crop has 20×20 pixels, and the generator's images 64×64"):
        Alignment.center((20, 30), (64, 64))


# Reading


def test_a_photo_is_turned_as_its_exif_data_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert upright(jpeg((40, 60), exif=exif)).size == (40, 60)
    assert upright(jpeg((40, 60))).size == (60, 40)


def test_what_cannot_be_used_is_listed_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(jpeg((80, 80)))
    (tmp_path / "small.jpg").write_bytes(jpeg((20, 20)))
    (tmp_path / "broken.jpg").write_bytes(jpeg((80, 80))[:300])
    Image.new("RGBA", (80, 80), (1, 2, 3, 100)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((80, 80), 40000, np.uint16)).save(tmp_path / "deep.png")
    Image.new("L", (80, 80), 7).save(tmp_path / "gray.png")
    with pytest.raises(AnnotationError) as raised:
        read_photos(tmp_path, (64, 64))
    mistakes = "\n".join(raised.value.mistakes)
    for words in (
        "small: is too small",
        "broken: is a damaged JPEG",
        "clear: is transparent",
        "deep: has more than 8 bits",
    ):
        assert words in mistakes
    warnings: list[str] = []
    photos = read_photos(tmp_path, (64, 64), skip=True, warn=warnings.append)
    assert photos.names == ("good", "gray")
    assert len(warnings) == 4
    assert photos[1].image.unique().tolist() == [7]


@pytest.mark.parametrize("packed", [False, True])
def test_pictures_of_other_formats_are_not_passed_over_in_silence(tmp_path: Path, packed: bool) -> None:
    folder = tmp_path / "scans"
    (folder / "more").mkdir(parents=True)
    for name in ("a.HEIC", "b.gif", "more/c.dcm", "d.nii.gz", "notes.txt", "README"):
        (folder / name).write_bytes(b"")
    (folder / "x.png").write_bytes(b"not a picture")

    def read() -> Photos:
        (tmp_path / "scans.zip").unlink(missing_ok=True)
        return read_photos(shutil.make_archive(str(folder), "zip", folder) if packed else folder, SIZE)

    with pytest.raises(AnnotationError, match="is not a picture"):
        read()
    (folder / "x.png").unlink()
    message = (
        r"4 pictures of other formats passed over: a.HEIC, b.gif, d.nii.gz, … \(4 in all\). Photos are \*.jpg, .*: con"
    )
    with pytest.raises(AnnotationError, match=message):
        read()
    Image.new("RGB", SIZE, 9).save(folder / "x.png")
    with pytest.warns(UserWarning, match=message):
        assert read().names == ("x",)
    for name in ("a.HEIC", "b.gif", "more/c.dcm", "d.nii.gz"):
        (folder / name).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read().names == ("x",)


def test_boxes_and_keypoints_of_a_coco_file_make_a_photo_of_each_object(tmp_path: Path) -> None:
    pixels = np.zeros((200, 200, 3), np.uint8)
    pixels[100:164, 20:84] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 200, "height": 200}],
        "categories": [{"id": 1, "name": "face", "keypoints": ["left", "right"]}],
        "annotations": [
            {"id": 7, "image_id": 1, "category_id": 1, "bbox": [20, 100, 64, 64], "keypoints": [36, 116, 2, 68, 116, 2]}
        ],
    }
    (tmp_path / "photos.json").write_text(json.dumps(coco))
    by_box = read_photos(tmp_path / "photos.json", (64, 64), align="boxes")
    by_points = read_photos(
        tmp_path / "photos.json", (64, 64), align="keypoints", template={"left": [16, 16], "right": [48, 16]}
    )
    for photos in (by_box, by_points):
        assert photos.names == ("a-7",)
        assert photos[0].image.min() == 255
    coco["images"] = [{"id": 1, "file_name": "../a.png"}]
    (tmp_path / "photos.json").write_text(json.dumps(coco))
    with pytest.raises(AnnotationError, match="lies outside the folder"):
        read_photos(tmp_path / "photos.json", (64, 64))


# Resuming, and styles of files


@pytest.mark.slow
def test_a_stopped_run_goes_on_where_it_was(
    labeled: LabeledGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every finished batch is kept, wherever in a group of batches it was stopped."""
    inverter = Inverter(
        labeled.generator, labeled.recipe.override(compute_batch=2), InversionSettings(steps=1, starts=1)
    )
    photos = read_photos(save(tmp_path / "photos", own_images(labeled, range(9))), SIZE)
    undisturbed = invert_photos(inverter, photos)
    asked: list[int] = []
    invert, stop_before = inverter.invert, 3

    def counting(images: torch.Tensor, start: torch.Tensor | None = None) -> Inversion:
        if len(asked) == stop_before:
            raise KeyboardInterrupt
        asked.append(len(images))
        return invert(images, start)

    monkeypatch.setattr(inverter, "invert", counting)
    with pytest.raises(KeyboardInterrupt), one_thread():
        invert_photos(inverter, photos, work=tmp_path / "work")
    kept = list((tmp_path / "work").iterdir())
    assert asked == [2, 2, 2] and len(kept) == 3
    stop_before = 99
    resumed = invert_photos(inverter, photos, work=tmp_path / "work")
    assert sorted(asked[3:]) == [1, 2]  # three batches of five were kept
    assert resumed.styles.equal(undisturbed.styles)
    kept[0].write_bytes(b"damaged")
    assert invert_photos(inverter, photos, work=tmp_path / "work").scores.equal(undisturbed.scores)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Batches one after the other, so that it is known which are finished."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def test_styles_of_files_are_checked(tmp_path: Path) -> None:
    styles = torch.randn(2, 10, 8)
    np.save(tmp_path / "a.npy", styles.numpy())
    torch.save({"b.jpg": styles[1], "a.jpg": styles[0][None]}, tmp_path / "a.pt")
    for name in ("a.npy", "a.pt"):
        assert read_styles(tmp_path / name, ("a", "b"), 10, 8).equal(styles)
    with pytest.raises(ValueError, match=r"holds \[2, 10, 8\], expected styles \[3, 10, 8\]"):
        read_styles(tmp_path / "a.npy", ("a", "b", "c"), 10, 8)
    with pytest.raises(ValueError, match=r"has no styles of c"):
        read_styles(tmp_path / "a.pt", ("a", "b", "c"), 10, 8)
    np.save(tmp_path / "p.npy", np.array({"a": 1}, dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="a dict of arrays is a pickle, which is not read"):
        read_styles(tmp_path / "p.npy", ("a",), 10, 8)


# Labeled photos


def with_scores(found: Inversion, scores: list[float]) -> Inversion:
    return Inversion(found.styles, found.images, found.errors, found.distances, torch.tensor(scores))


@pytest.fixture(scope="module")
def photos(labeled: LabeledGenerator, tmp_path_factory: pytest.TempPathFactory) -> Photos:
    folder = tmp_path_factory.mktemp("photos")
    return read_photos(save(folder, own_images(labeled, range(4))), SIZE, license="CC0-1.0")


def test_labeled_photos_hold_the_photo_and_leave_out_what_is_not_trusted(
    labeled: LabeledGenerator, inverter: Inverter, photos: Photos
) -> None:
    found = with_scores(invert_photos(inverter, photos), [0.5, 1.5, 0.7, 0.9])
    source = LabeledPhotos(labeled, photos, found)
    assert source.untrusted == ("photo1",)
    assert source.names == ("photo0", "photo2", "photo3")
    assert source.license == "CC0-1.0"
    batch = source.batch([2, 0], extras=["uncertainty", "probabilities"])
    assert isinstance(batch, SampleBatch)
    assert batch.image[0].equal(photos[3].image)
    assert batch.mask.equal(labeled.labeler.label(found.styles[[3, 0]], labeled.recipe)["mask"])
    assert batch["uncertainty"].shape == (2, *SIZE)
    assert batch["probabilities"].shape == (2, 4, *SIZE)
    assert "uncertainty" not in source.batch([0]) and "uncertainty_score" in source.batch([0])
    assert DSGANDataset(source)[1].mask.equal(source.batch([1]).mask[0])
    with pytest.raises(ValueError, match="photos have the extras uncertainty, probabilities, not latent"):
        source.batch([0], extras=["latent"])
    assert len(LabeledPhotos(labeled, photos, found, keep_untrusted=True)) == 4
    with pytest.raises(ValueError, match="none of the 4 photos can be trusted"):
        LabeledPhotos(labeled, photos, with_scores(found, [2, 3, 4, 5]))


def test_exported_photos_keep_their_names_and_the_way_back(
    labeled: LabeledGenerator, inverter: Inverter, photos: Photos, tmp_path: Path
) -> None:
    source = LabeledPhotos(labeled, photos, with_scores(invert_photos(inverter, photos), [0.5, 1.5, 0.7, 0.9]))
    assert export(source.as_input(), tmp_path / "out", "folder") == {"": 3}
    assert sorted(path.stem for path in (tmp_path / "out" / "masks").iterdir()) == list(source.names)
    facts = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [(each["photo"], each["inversion_score"]) for each in facts] == [
        ("photo0", 0.5), ("photo2", 0.7), ("photo3", 0.9)
    ]  # fmt: skip
    assert Alignment.from_dict(facts[0]["alignment"]).photo_size == SIZE


# Photos as annotations


def annotated_photos(labeled: LabeledGenerator, found: Inversion, photos: Photos, out: Path, **options: object) -> Path:
    labels = {name: {"mask": blocks(number)} for number, name in enumerate(photos.names)}
    export_photos(
        labeled.generator, SCHEMA, out, photos, found, recipe=labeled.recipe, labels=labels, name="small", **options
    )
    return out


def test_photos_with_masks_are_a_round_whose_latents_are_styles(
    labeled: LabeledGenerator, inverter: Inverter, photos: Photos, tmp_path: Path
) -> None:
    found = with_scores(invert_photos(inverter, photos), [0.5, 1.5, 0.7, 0.9])
    read = load_annotations(annotated_photos(labeled, found, photos, tmp_path / "out"))
    assert read.names == ("photo0", "photo2", "photo3")
    assert read.latents.equal(found.styles[[0, 2, 3]])
    assert read.masks[1].equal(torch.from_numpy(blocks(2)))
    assert read.photo_licenses == ("CC0-1.0",)


def test_pixels_that_a_reconstruction_does_not_show_are_not_learned_from(
    labeled: LabeledGenerator, photos: Photos, tmp_path: Path
) -> None:
    true = own_styles(labeled, range(4))
    images = torch.stack([photo.image for photo in photos])
    changed = images.clone()
    changed[:, :, :8, :8] = 255 - changed[:, :, :8, :8].div(128, rounding_mode="floor") * 255  # far from what it was
    shown = read_photos(save(tmp_path / "changed", changed), SIZE)
    found = Inversion(true, images, torch.zeros(4), torch.zeros(4), torch.zeros(4))
    read = load_annotations(annotated_photos(labeled, found, shown, tmp_path / "out"), labeled.generator)
    ignored = read.masks == SCHEMA.ignore_index
    assert bool(ignored[:, :6, :6].all())
    assert not ignored[:, 10:, 10:].any()


@pytest.mark.slow
def test_draws_and_photos_are_fitted_together(
    labeled: LabeledGenerator, inverter: Inverter, photos: Photos, tmp_path: Path
) -> None:
    found = with_scores(invert_photos(inverter, photos), [0.1] * 4)
    of_photos = annotated_photos(labeled, found, photos, tmp_path / "photos")
    of_draws = export_to(tmp_path / "draws")
    write_masks(of_draws)
    with pytest.raises(AnnotationError, match="joined by their styles, which the generator makes: give the generator"):
        load_annotations([of_draws, of_photos])
    both = load_annotations([of_photos, of_draws], labeled.generator)
    draws = load_annotations(of_draws, labeled.generator)
    made = labeled.generator.mapping(draws.latents, truncation_psi=draws.recipe.truncation_psi)
    assert both.latents.equal(torch.cat([found.styles, made]))
    assert both.recipe == draws.recipe
    settings = FitSettings(members=1, steps=2)
    interpreter = fit_interpreter(labeled.generator, both.annotated, SCHEMA, recipe=both.recipe, settings=settings)
    assert interpreter.num_classes == SCHEMA.num_classes


def test_styles_of_another_shape_are_refused(labeled: LabeledGenerator) -> None:
    annotated = AnnotatedImages(torch.zeros(1, 3, 7), torch.from_numpy(blocks(0))[None])
    with pytest.raises(ValueError, match="latents have 3×7 numbers; the generator's z has"):
        fit_interpreter(labeled.generator, annotated, SCHEMA, recipe=Recipe())


def test_labels_are_compared_with_those_of_the_same_photos(
    labeled: LabeledGenerator, inverter: Inverter, photos: Photos
) -> None:
    source = LabeledPhotos(labeled, photos, with_scores(invert_photos(inverter, photos), [0.5, 1.5, 0.7, 0.9]))
    own = dict(zip(source.names, source.batch(range(3)).mask.numpy(), strict=True))

    def accuracy(labels: dict[str, np.ndarray]) -> float | None:
        found = evaluate_photos(source, {name: {"mask": mask} for name, mask in labels.items()})
        (compared,) = found.comparisons
        return compared.figures["inversion"].summary["pixel accuracy"]

    assert accuracy(own) == 1
    assert accuracy({"photo1": own["photo0"], "photo2": (own["photo2"] + 1) % 4}) == 0  # the first is not trusted
    with pytest.raises(ValueError, match="none of the photos that can be trusted has a label"):
        accuracy({"photo1": own["photo0"]})


def test_masks_of_photos_are_aligned_like_them(tmp_path: Path) -> None:
    picture, mask = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8)
    mask[:, 10:30] = 2
    (tmp_path / "photos").mkdir()
    (tmp_path / "masks").mkdir()
    Image.fromarray(picture).save(tmp_path / "photos" / "a.jpg")
    (tmp_path / "masks" / "a.png").write_bytes(png(mask))
    photos = read_photos(tmp_path / "photos", SIZE)
    (aligned,) = read_labels(photos, [SCHEMA], tmp_path / "masks").values()
    assert aligned["mask"][:, :8].tolist() == [[2] * 8] * 16
    assert aligned["mask"][:, 8:].tolist() == [[0] * 8] * 16
    (tmp_path / "masks" / "a.png").write_bytes(png(mask[:16, :16]))  # of the frame, as an exported image has it
    with pytest.raises(AnnotationError, match=r"is 16×16 pixels, its image is 60×40: label the whole photo, upright"):
        read_labels(photos, [SCHEMA], tmp_path / "masks")
    (tmp_path / "masks" / "a.png").write_bytes(png(mask))
    (tmp_path / "masks" / "b.png").write_bytes(png(mask))
    with pytest.raises(AnnotationError, match=r"b\.png: is a mask of no photo"):
        read_labels(photos, [SCHEMA], tmp_path / "masks")


@pytest.mark.slow
def test_the_commands(labeled: LabeledGenerator, photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    labeled.save_pretrained(tmp_path / "ck")
    save(tmp_path / "photos", own_images(labeled, range(3)))
    (tmp_path / "masks").mkdir()
    for number in range(3):
        (tmp_path / "masks" / f"photo{number}.png").write_bytes(png(blocks(number)))
    words = [str(tmp_path / name) for name in ("ck", "photos", "out")]
    quick = ["--steps", "3", "--keep-untrusted", "--device", "cpu"]
    assert main(["invert", *words, "--masks", str(tmp_path / "masks"), *quick]) == 0
    assert "3 photos to annotate, 3 with labels" in capsys.readouterr().out
    assert not (tmp_path / "out.inverting").exists()
    assert load_annotations(tmp_path / "out").photo_licenses == ("unspecified",)
    words[2] = str(tmp_path / "evaluation")
    quickly = ["--labels", str(tmp_path / "masks"), *quick[:2], "--device", "cpu", "--student-minutes", "0.001"]
    assert main(["evaluate", *words, *quickly]) == 0
    said = capsys.readouterr().out
    evaluation = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert evaluation["compared"] == evaluation["trusted"] == 3 and evaluation["student"]["steps"] >= 1
    assert evaluation["labels"]["mask"].keys() == {"compared", "inversion", "student"}
    assert "mask (student: 0.001 min, " in said and "IoU by student" in said and evaluation["expectation"] in said
    assert (tmp_path / "evaluation" / "evaluation.png").is_file()
    words[2] = str(tmp_path / "labeled")
    assert main(["label", *words, "--format", "drafts", "--sheet", str(tmp_path / "sheet.png"), *quick]) == 0
    assert (tmp_path / "labeled" / "drafts" / "photo2.png").is_file()
    assert (tmp_path / "sheet.png").is_file()
    assert main(["label", *words, "--format", "coco", *quick]) == 1
    assert "labeled exists: choose another name" in capsys.readouterr().err


def test_a_box_that_shows_no_part_of_its_photo_is_a_mistake(tmp_path: Path) -> None:
    Image.new("RGB", (100, 80), 9).save(tmp_path / "a.png")

    def read(image: dict[str, Any] | None = None, margin: float = 0.0, **annotation: Any) -> Photos:
        images = [{"id": 1, "file_name": "a.png", "width": 100, "height": 80, **(image or {})}]
        content = {"images": images, "annotations": [{"id": 7, "image_id": 1, "bbox": [0, 0, 64, 64], **annotation}]}
        (tmp_path / "photos.json").write_text(json.dumps(content))
        return read_photos(tmp_path / "photos.json", (64, 64), align="boxes", margin=margin)

    assert read().names == ("a-7",)
    assert read(bbox=[60, 40, 64, 64], margin=0.1).names == ("a-7",)  # a part is shown
    for box in ([100, 0, 64, 64], [-70, 0, 64, 64], [0, 900, 64, 64]):
        with pytest.raises(AnnotationError, match="outside of the photo, which has 100×80 pixels"):
            read(bbox=box)
    for box in ([10, 10, -64, 64], [10, 10, 64, 0]):
        with pytest.raises(AnnotationError, match="has a bbox of"):
            read(bbox=box)
    with pytest.raises(AnnotationError, match=r"100×80 pixels, upright, and 80×100 in the COCO file"):
        read(image={"width": 80, "height": 100})
    with pytest.raises(AnnotationError, match=r"image id 2, which is not in the file"):
        read(image_id=2)
    for margin in (-0.5, -3, float("nan"), "0.1"):
        with pytest.raises(ValueError, match="margin must be a share"):
            read(margin=margin)  # type: ignore[arg-type]


@pytest.mark.parametrize("align", ["center", "boxes"])
def test_photos_with_the_same_id_are_a_mistake_that_is_not_skipped(tmp_path: Path, align: Any) -> None:
    for name in "ab":
        Image.new("RGB", (64, 64), 9).save(tmp_path / f"{name}.png")
    images = [{"id": 1, "file_name": f"{name}.png"} for name in "ab"]
    annotations = [{"id": 7, "image_id": 1, "bbox": [0, 0, 64, 64]}]
    (tmp_path / "photos.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    with pytest.raises(AnnotationError, match="^1 mistake in .*\n.*several images have the id 1"):
        read_photos(tmp_path / "photos.json", (64, 64), align=align, skip=True)


def test_what_changes_nothing_while_reading_photos_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg((80, 80)))
    (tmp_path / "b.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="margin .* changes nothing with align=center"):
        read_photos(tmp_path, (64, 64), margin=0.2)
    with pytest.raises(ValueError, match="template .* changes nothing with align=center"):
        read_photos(tmp_path, (64, 64), template={"nose": (1, 2), "chin": (1, 5)})
    with pytest.raises(ValueError, match="align=keypoints needs a template"):
        read_photos(tmp_path, (64, 64), align="keypoints")
    for template, words in (
        ({"nose": (3, 4)}, "two keypoints or more"),
        ([1, 2], "two keypoints or more"),
        ({"nose": (3, 4), "chin": 5}, r"chin must be \[x, y\]"),
        ({"nose": (3, 4), "chin": (512, 800)}, r"chin must lie in the generator's images, which have 64×64"),
    ):
        with pytest.raises(ValueError, match=words):
            read_photos(tmp_path, (64, 64), align="keypoints", template=template)  # type: ignore[arg-type]
    with pytest.raises(AnnotationError, match="^1 mistake in ") as raised:
        read_photos(tmp_path, (64, 64))
    assert str(raised.value).endswith("or leave such photos out: skip (--skip)")


def test_label_refuses_what_cannot_be_written_before_it_inverts(
    labeled: LabeledGenerator, photos: Photos, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    labeled.save_pretrained(tmp_path / "ck")
    save(tmp_path / "photos", own_images(labeled, range(2)))
    words = ["label", *(str(tmp_path / name) for name in ("ck", "photos", "out")), "--steps", "3", "--device", "cpu"]
    for options, said in (
        (["--format", "yolo-pose"], "needs keypoints"),
        (["--format", "folder", "--label", "mak"], "labels must be some of mask"),
        (["--format", "yolo-seg", "--instance-class", "zebra"], "no class 'zebra'"),
        (["--format", "folder", "--split", "val=2"], "a split is a name and a share"),
        (["--format", "drafts", "--palette", "--label", "mask"], "--label, --palette changes nothing in format drafts"),
    ):
        assert main([*words, *options]) == 1
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out.inverting").exists()
    words[3] = str(tmp_path / "photos" / "out")
    assert main([*words, "--format", "folder"]) == 1
    assert "would be among its photos next time" in capsys.readouterr().err
