// Compiled once per instruction set: HMP_ISA names the namespace, HMP_TABLE the table it fills.
#include "scan/conv.h"
#include "scan/scan_backward.h"
#include "scan/scan_forward.h"
#include "ranking/select.h"
#include "scan/step.h"
#include "packed/token.h"

#define HMP_TEXT_OF(name) #name
#define HMP_TEXT(name) HMP_TEXT_OF(name)

namespace hmp {

extern const KernelTable HMP_TABLE = {
    HMP_TEXT(HMP_ISA),
    HMP_ISA::kLanes,
    HMP_ISA::scan_sizes,
    HMP_ISA::scan_forward,
    HMP_ISA::scan_backward,
    HMP_ISA::conv_forward,
    HMP_ISA::conv_backward,
    HMP_ISA::state_step,
    HMP_ISA::conv_step,
    HMP_ISA::range_histogram,
    HMP_ISA::keep_above,
    HMP_ISA::between,
    HMP_ISA::packed_product,
    HMP_ISA::packed_rows,
    HMP_ISA::token_step,
};

}  // namespace hmp
