from dataclasses import replace

from sims.episode import CAMERAS, Setting


def test_a_control_bears_another_name_than_the_policy() -> None:
    plain = Setting("outputs/mine")
    control = replace(plain, instruction="shuffled", masked_cameras=("left", "right"))
    assert plain.label == "outputs/mine"
    assert control.label == "outputs/mine [shuffled instruction, without left+right]"
    assert plain.video_name(7) == "outputs-mine_none_Reach_7.mp4"
    assert control.video_name(7) == "outputs-mine-shuffled-instruction-without-left+right_none_Reach_7.mp4"
    assert replace(plain, masked_cameras=CAMERAS).label == "outputs/mine [without cameras]"
