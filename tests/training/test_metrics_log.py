import errno
import json
import logging
import os
import re
import sys

import pytest

from mambar.errors import CheckpointError, DiskError
from mambar.training.metrics_log import MetricsLog, ProgressDisplay, read_metrics


def row(step, kind="training", **values):
    return json.dumps({"format_version": 1, "kind": kind, "step": step, **values}) + "\n"


def test_rows_are_read_back_with_exact_numbers(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.open(step=0, evaluated=0)
    log.append("training", {"step": 1, "loss": 0.1 + 0.2, "grad_norm": float("nan")})
    log.sync()
    log.close()
    [found] = read_metrics(log.path)
    assert found["loss"] == 0.1 + 0.2 and found["grad_norm"] is None


def test_a_resume_removes_rows_after_its_step_and_an_incomplete_last_row(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(row(1) + row(2) + row(2, "evaluation") + row(3) + row(3, "evaluation") + '{"format_ver', "utf-8")
    log = MetricsLog(path)
    log.open(step=3, evaluated=2)
    log.append("training", {"step": 4})
    log.close()
    assert [(found["kind"], found["step"]) for found in read_metrics(path)] == [
        ("training", 1),
        ("training", 2),
        ("evaluation", 2),
        ("training", 3),
        ("training", 4),
    ]


def test_an_incomplete_last_row_is_ignored_and_a_damaged_row_is_named(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text(row(1) + "garbage\n" + row(2) + "{", "utf-8")
    assert [found["step"] for found in read_metrics(path)] == [1, 2]
    assert "line 2 is damaged" in caplog.text


def test_a_newer_format_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(row(1).replace('"format_version": 1', '"format_version": 9'), "utf-8")
    with pytest.raises(CheckpointError, match="format_version 9"):
        read_metrics(path)


def test_a_missing_file_has_no_rows(tmp_path):
    assert read_metrics(tmp_path / "none") == []


def test_log_lines_have_loss_accuracy_speed_and_remaining_time(caplog):
    caplog.set_level(logging.INFO)
    lines = ProgressDisplay(seconds=0.0)
    lines.start("digits", steps=4, done=0)
    lines.step(1, loss=2.5, accuracy=0.25, images=32)
    lines.message("top1 0.9")
    lines.close()
    assert "digits: step 1 of 4, loss 2.5000, accuracy 25.0%" in caplog.text
    assert "images/s" in caplog.text and "left" in caplog.text and "digits: top1 0.9" in caplog.text


def test_less_than_one_image_per_second_is_not_zero(caplog):
    caplog.set_level(logging.INFO)
    lines = ProgressDisplay(seconds=0.0)
    lines.start("large", steps=2, done=0)
    # The first step took 100 seconds.
    lines.bar.tasks[-1].start_time -= 100
    lines.step(1, loss=2.5, accuracy=None, images=1)
    lines.close()
    assert re.search(r"loss 2.5000, 0\.0\d+ images/s, ", caplog.text), caplog.text


def test_short_writes_are_continued_until_the_row_is_complete(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.open(step=0, evaluated=0)
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data)[:7]))
        for step in (1, 2):
            log.append("training", {"step": step, "loss": 0.5})
    log.close()
    assert [found["step"] for found in read_metrics(log.path)] == [1, 2]


def test_a_row_cut_by_a_full_disk_is_removed_and_the_next_one_is_complete(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.open(step=0, evaluated=0)
    write, calls = os.write, []

    def cut(descriptor, data):
        calls.append(data)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, bytes(data)[:9])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", cut)
        with pytest.raises(DiskError, match="No space left"):
            log.append("training", {"step": 1})
    log.append("training", {"step": 2})
    log.close()
    assert [found["step"] for found in read_metrics(log.path)] == [2]


def test_an_incomplete_last_row_is_removed_at_the_next_start(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(row(1) + row(2)[:-20], "utf-8")
    log = MetricsLog(path)
    log.open(step=2, evaluated=2)
    log.append("training", {"step": 2})
    log.close()
    assert [found["step"] for found in read_metrics(path)] == [1, 2]
    assert path.read_text("utf-8").endswith("\n")


def test_without_a_standard_error_progress_is_logged(monkeypatch, caplog):
    monkeypatch.setattr(sys, "stderr", None)
    caplog.set_level(logging.INFO)
    ProgressDisplay(visible=False).close()
    lines = ProgressDisplay(seconds=0.0)
    lines.start("digits", steps=1, done=0)
    lines.step(1, loss=2.5, accuracy=None, images=32)
    lines.close()
    assert "digits: step 1 of 1" in caplog.text
