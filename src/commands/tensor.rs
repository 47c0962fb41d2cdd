//! FS.TENSOR.

use super::mget::row_of_same_view;
use super::{FEATURES, FIRST, KEYS};
use crate::server::command::{Call, Command, KeyAccess, Keys, Spec};
use crate::server::rows::NumberReader;
use crate::server::state::words;
use feature_store_core::{Error, Result};
use smallvec::SmallVec;

/// As large as a string of the protocol may be.
const TENSOR_BYTES_MAX: usize = 512 << 20;

/// Reads rows as numbers.
pub(super) struct Tensor;

impl Command for Tensor {
    const SPEC: Spec = Spec {
        name: c"FS.TENSOR",
        summary: c"Reads features of rows as one block of float32.",
        complexity: c"O(N*F), N the number of rows, F the number of features of a row.",
        since: FIRST,
        flags: c"readonly fast",
        categories: c"fs read fast",
        arity: -3,
        keys: Keys::From(2, 1, KeyAccess::Read),
        arguments: &[FEATURES, KEYS],
        reply: "One string: N rows by K columns, row by row, little-endian float32, ready for \
                `numpy.frombuffer(reply, '<f4').reshape(n, -1)`.",
        notes:
            "A VECTOR fills one column a dimension, a BOOL is 0 or 1, a STRING with `VALUES` is its index there. An \
                absent value is its default, else NaN. A feature that has no number (LIST, STRING without `VALUES`) is \
                an error, also inside `*`; `FS.DESCRIBE view JSON` tells which have one, and their widths.",
    };

    fn run(call: &Call<'_>) -> Result<()> {
        let context = call.context;
        let (_, prepared) = call.row(2)?;
        let view = &prepared.view;
        let request = prepared.request(call.arguments().next("features")?)?;
        // Before any row is read: a feature without a number is an error up front.
        let numbers = match &request.numbers {
            Some(numbers) => numbers,
            None => return view.tensor_columns(&request.features).map(|_| ()),
        };
        let keys = call.arguments().len() - 1;
        let bytes = checked_bytes(numbers.width, keys)?;
        let words = words(context);
        // One short row needs no allocation.
        let mut tensor: SmallVec<[u8; 512]> = SmallVec::from_elem(0, bytes);
        let mut reader = NumberReader::new(&prepared, numbers, context.now_ms());
        for (place, out) in (2..2 + keys).zip(tensor.chunks_exact_mut((numbers.width * 4).max(1))) {
            reader.read(context, &words, row_of_same_view(call, place, view)?, out, |_| {})?;
        }
        context.reply_bytes(&tensor);
        Ok(())
    }
}

/// The size of a tensor of that many columns and rows; more than a string of the protocol takes is refused.
pub(super) fn checked_bytes(columns: usize, rows: usize) -> Result<usize> {
    let bytes = columns.saturating_mul(rows).saturating_mul(4);
    if bytes > TENSOR_BYTES_MAX {
        return Err(Error::syntax(format!(
            "the tensor would have {bytes} bytes, allowed are {TENSOR_BYTES_MAX}: ask for fewer rows at a time"
        )));
    }
    Ok(bytes)
}
