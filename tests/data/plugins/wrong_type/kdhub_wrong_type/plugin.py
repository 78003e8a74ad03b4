from kdhub import TeacherSpec, hookimpl


@hookimpl
def kdhub_methods():
    yield TeacherSpec(name="no-method", target="kdhub_wrong_type.teacher:Teacher")
