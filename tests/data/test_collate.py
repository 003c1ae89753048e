from tests.model.tiny import dense_model
def test_x():
    assert dense_model("phi")
