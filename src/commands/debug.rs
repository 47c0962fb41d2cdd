//! FS.DEBUG: for tests of the module itself; only with the load argument `debug yes`.

use super::FIRST;
use crate::server::command::{Argument, Call, Command, Keys, Spec};
use feature_store_core::Result;

/// Does on purpose what must never happen.
pub(super) struct Debug;

impl Command for Debug {
    const SPEC: Spec = Spec {
        name: c"FS.DEBUG",
        summary: c"Provokes faults, for tests of the module itself.",
        complexity: c"O(1)",
        since: FIRST,
        flags: c"admin",
        categories: c"fs admin dangerous",
        arity: 2,
        keys: Keys::None,
        arguments: &[Argument::one_of(c"fault", &[Argument::word(c"PANIC")])],
        reply: "An error: the panic is caught.",
        notes: "",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        call.arguments().one_of("FS.DEBUG", &["PANIC"])?;
        panic!("a panic that a test asked for");
    }
}
