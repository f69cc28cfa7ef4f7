import av
import numpy as np

from sims.video import OUTCOME_S, Film, compose, write_video

CAMERAS = {"left": np.full((224, 224, 3), 40, np.uint8), "right": np.full((224, 224, 3), 200, np.uint8)}


def test_picture_shows_cameras_side_by_side_under_the_words() -> None:
    bare, worded = compose(CAMERAS, ""), compose(CAMERAS, "lift the red cube", "failure")
    assert bare.shape == worded.shape
    assert all(side % 2 == 0 for side in bare.shape[:2])
    middle = bare.shape[0] // 2
    assert bare[middle, 100, 0] == 40
    assert bare[middle, -100, 0] == 200
    assert not np.array_equal(bare[:44], worded[:44])


def test_video_has_every_frame_and_holds_the_outcome(tmp_path) -> None:
    path = tmp_path / "episode.mp4"
    write_video(path, [CAMERAS] * 10, "lift the red cube", True, fps=20)
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 10 + round(OUTCOME_S * 20)
    greenish = frames[-1][:44].astype(int)
    assert ((greenish[..., 1] - greenish[..., 0]) > 50).any()
    assert list(tmp_path.iterdir()) == [path]


def test_film_keeps_images_nearly_as_they_were_in_a_tenth_of_the_memory() -> None:
    rows, columns = np.mgrid[:224, :224]
    image = np.stack([rows, columns, 255 - rows], axis=-1).astype(np.uint8)
    film = Film()
    film.append({"left": image, "right": image[::-1]})
    film.append(CAMERAS)
    assert len(film) == 2
    assert list(film[0]) == ["left", "right"]
    np.testing.assert_allclose(film[0]["right"].astype(int), image[::-1], atol=12)
    assert 10 * sum(jpeg.nbytes for jpeg in film._frames[0].values()) < 2 * image.nbytes
