from pi0_control.control import benchmark


def test_every_case_is_measured_and_gives_commands(monkeypatch, capsys) -> None:
    monkeypatch.setattr(benchmark, "COMMANDS", 20)
    benchmark.main()
    title, *rows = capsys.readouterr().out.splitlines()
    assert title.startswith("7 joints, 20 commands each")
    assert len(rows) == 5
    assert all(0 < float(row.split()[-2]) <= float(row.split()[-1]) for row in rows)
    assert benchmark.tracking(benchmark.RobotSpec.from_yaml("arm6"), 0.05)(0).status == "tracking"
