"""What schemathesis must not take for a fault."""

import schemathesis


@schemathesis.hook
def filter_case(context, case):
    """Leaves out forms that are meant to be wrong: a form holds texts alone, and what schemathesis writes into a field is a text, whatever it was."""
    negative = case.meta is not None and case.meta.generation.mode.is_negative
    return not (negative and case.media_type == "multipart/form-data")
