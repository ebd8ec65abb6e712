"""What can go wrong in an export, by whose hands can mend it. Nothing was written in any case."""


class ExportError(Exception):
    """Base of all; the message says what came, what was expected, and what to do."""


class SourceError(ExportError):
    """The module, the weights, the example or the pipeline file is not usable."""


class CallError(ExportError):
    """No way to call the module was found, or more than one."""


class StructureError(CallError):
    """What a call returned has another structure than the notation says, whatever its shapes."""


class MixingError(CallError):
    """Rows of a batch change each other's results."""


class CarryError(CallError):
    """The way of calling is known, but a state of the module cannot be carried, or not begun."""


class LoweringError(ExportError):
    """The module's step could not be turned into graphs that compute the same."""


class DecisionError(LoweringError):
    """The module's code decides by the values of a tensor: no one graph is its step."""


class NothingQuantizedError(LoweringError):
    """An int8 variant would hold no int8 product; it is left out, and the report says so."""


class UnavailableError(LoweringError):
    """This torch lacks what a variant is made with; unless asked for, the variant is left out."""


class CausalityError(ExportError):
    """The module's answer for a step depends on the steps after it, or on the chunking."""


class ParityError(ExportError):
    """A variant drifts from the reference by more than its tolerance."""
