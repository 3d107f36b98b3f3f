from __future__ import annotations

import hashlib
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ray_eraser.config import DataConfig
from ray_eraser.data import download
from ray_eraser.data.download import RELEASES, Release, download_movielens
from ray_eraser.data.files import read_dataset
from ray_eraser.errors import DataFileError

RATINGS = b"1::10::5::978300760\n1::20::3::978302109\n2::10::4::978301968\n"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder, and the address of a server for its files."""
    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def put_archive(folder, monkeypatch, members):
    """Put an archive in place of MovieLens-1M, and register its checksum."""
    archive = folder / "ml-1m.zip"
    with zipfile.ZipFile(archive, "w") as content:
        for name, data in members.items():
            content.writestr(name, data)
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(RELEASES, "1m", Release("ml-1m.zip", md5, "ml-1m"))
    return archive


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_a_downloaded_release_can_be_read(served, tmp_path, monkeypatch):
    folder, url = served
    put_archive(folder, monkeypatch, {"ml-1m/ratings.dat": RATINGS, "ml-1m/README": b"terms"})
    unpacked = download_movielens("1m", tmp_path / "data", url)
    assert unpacked == tmp_path / "data" / "ml-1m"
    dataset = read_dataset(str(unpacked), DataConfig(), 1)
    assert (set(dataset.users.ids), set(dataset.items.ids), len(dataset.train)) == ({"1", "2"}, {"10", "20"}, 3)
    assert names(tmp_path / "data") == ["ml-1m", "ml-1m.zip"]


def test_existing_files_are_not_downloaded_again(served, tmp_path, monkeypatch):
    folder, url = served
    archive = put_archive(folder, monkeypatch, {"ml-1m/ratings.dat": RATINGS})
    first = download_movielens("1m", tmp_path / "data", url)
    archive.unlink()
    assert download_movielens("1m", tmp_path / "data", url) == first


def test_an_archive_provided_by_the_user_is_used_without_a_network(tmp_path, monkeypatch):
    put_archive(tmp_path, monkeypatch, {"ml-1m/ratings.dat": RATINGS})
    unpacked = download_movielens("1m", tmp_path, "http://127.0.0.1:9")
    assert (unpacked / "ratings.dat").read_bytes() == RATINGS


def test_without_a_network_the_error_says_which_file_goes_where(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(DataFileError) as caught:
        download_movielens("1m", tmp_path / "data", "http://127.0.0.1:9", timeout=5)
    for part in ("ml-1m.zip", "https://grouplens.org/datasets/movielens/", str(tmp_path / "data")):
        assert part in str(caught.value)
    assert names(tmp_path / "data") == []


def test_a_file_missing_on_the_server_is_reported_like_a_missing_network(served, tmp_path):
    with pytest.raises(DataFileError, match=r"404.*get ml-10m\.zip from"):
        download_movielens("10m", tmp_path / "data", served[1])


def test_a_download_with_another_checksum_leaves_nothing_behind(served, tmp_path, monkeypatch):
    folder, url = served
    archive = put_archive(folder, monkeypatch, {"ml-1m/ratings.dat": RATINGS})
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(DataFileError, match="MD5"):
        download_movielens("1m", tmp_path / "data", url)
    assert names(tmp_path / "data") == []


@pytest.mark.parametrize("member", ["../evil", "ml-1m/../../evil", "/evil", "elsewhere/evil", "ml-1m\\..\\..\\evil"])
def test_an_archive_that_would_write_outside_the_folder_is_refused_entirely(tmp_path, monkeypatch, member):
    data = tmp_path / "data"
    data.mkdir()
    put_archive(data, monkeypatch, {"ml-1m/ratings.dat": RATINGS, member: b"evil"})
    with pytest.raises(DataFileError, match="outside its folder"):
        download_movielens("1m", data)
    assert names(data) == ["ml-1m.zip"]
    assert not list(tmp_path.rglob("evil"))


def test_an_unknown_release_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(DataFileError, match="100k, 1m, 10m"):
        download_movielens("25m", tmp_path)


def test_the_releases_come_from_grouplens_over_https():
    assert download.BASE_URL == "https://files.grouplens.org/datasets/movielens"
    assert {name: release.md5 for name, release in RELEASES.items()} == {
        "100k": "0e33842e24a9c977be4e0107933c0723",
        "1m": "c4d9eecfca2ab87c1945afe126590906",
        "10m": "ce571fd55effeba0271552578f2648bd",
    }
