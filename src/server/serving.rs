//! Reading for services: rows of several views by entity id.

use crate::server::acl::{Access, Caller};
use crate::server::api::{Context, ServerString};
use crate::server::columns;
use crate::server::rows::{NumberReader, Rows, Times};
use crate::server::state::{words, PreparedService, PreparedView, STATE};
use feature_store_core::service::{write_pair_id, Part, Role};
use feature_store_core::windows::state::ReadAt;
use feature_store_core::Result;
use smallvec::SmallVec;
use std::rc::Rc;

/// Who is asked about, with checked ids.
pub(crate) struct Subjects<'a> {
    /// The one that is ranked for.
    pub(crate) context_id: Option<&'a [u8]>,
    /// The entities, or the candidates: a row of the answer each.
    pub(crate) ids: &'a [&'a [u8]],
}

impl Subjects<'_> {
    /// How many rows a part reads.
    fn rows(&self, role: Role) -> usize {
        match role {
            Role::Context => 1,
            Role::Entity | Role::Candidate | Role::Pair => self.ids.len(),
        }
    }

    /// Which row of a part belongs to a row of the answer.
    pub(crate) fn row_of(role: Role, row: usize) -> usize {
        match role {
            Role::Context => 0,
            Role::Entity | Role::Candidate | Role::Pair => row,
        }
    }

    /// The keys of a part's rows, in their order.
    fn keys<'k>(&'k self, role: Role, view: &'k PreparedView) -> impl Iterator<Item = ServerString> + 'k {
        let mut key = view.row_prefix.clone().into_bytes();
        (0..self.rows(role)).map(move |row| {
            key.truncate(view.row_prefix.len());
            match (role, self.context_id) {
                (Role::Context, Some(id)) => key.extend_from_slice(id),
                (Role::Pair, Some(id)) => write_pair_id(id, self.ids[row], &mut key),
                _ => key.extend_from_slice(self.ids[row]),
            }
            ServerString::new(&key)
        })
    }
}

/// A service, planned by the definitions as they are now.
pub(crate) fn planned(context: Context<'_>, name: &[u8]) -> Result<Rc<PreparedService>> {
    // The plan tells what comes from the column cache.
    columns::settle(context);
    STATE.borrow_mut(context).service(name)
}

/// The parts of a service with their views.
fn parts(service: &PreparedService) -> impl Iterator<Item = (&Part, &PreparedView)> {
    service.plan.parts.iter().zip(service.views.iter().map(AsRef::as_ref))
}

/// Refuses a caller who may not read all rows that are asked for.
pub(crate) fn check_permissions(
    context: Context<'_>,
    service: &PreparedService,
    subjects: &Subjects<'_>,
) -> Result<()> {
    let caller = Caller::of(context);
    for (part, view) in parts(service) {
        if !caller.may_read_all(&view.row_prefix) {
            subjects.keys(part.role, view).try_for_each(|key| caller.require(context, &key, Access::Read))?;
        }
    }
    Ok(())
}

/// Reads all rows, part by part.
pub(crate) fn read<'s>(
    context: Context<'_>,
    service: &'s PreparedService,
    subjects: &Subjects<'_>,
    at: ReadAt,
) -> Result<Vec<Rows<'s>>> {
    let words = words(context);
    let times = if service.service.with_status { Times::Always } else { Times::IfAged };
    parts(service)
        .map(|(part, view)| {
            let mut rows = Rows::new(view, &part.features, times, at);
            subjects.keys(part.role, view).try_for_each(|key| rows.read(context, &words, &key))?;
            Ok(rows)
        })
        .collect()
}

/// Rows of numbers, and which of them are present.
pub(crate) struct Tensor {
    /// Row by row, little-endian float32.
    pub(crate) bytes: Vec<u8>,
    /// A bit for each number in the same order, the lowest of a byte first. Only where the service wants it.
    pub(crate) present: Option<Vec<u8>>,
}

impl Tensor {
    /// The context's row stands in each row of the answer.
    fn repeat(&mut self, part: &Part, width: usize, rows: usize) {
        for (offset, count) in &part.columns {
            let number = self.bytes[offset * 4..(offset + count) * 4].to_vec();
            let is_present = self.present.as_ref().is_some_and(|bits| bits[offset / 8] >> (offset % 8) & 1 == 1);
            for row in 1..rows {
                let first = row * width + offset;
                self.bytes[first * 4..(first + count) * 4].copy_from_slice(&number);
                if is_present {
                    mark(&mut self.present, first, *count);
                }
            }
        }
    }
}

fn pair_ids(context_id: &[u8], ids: &[&[u8]]) -> Vec<SmallVec<[u8; 64]>> {
    let pair = |id: &&[u8]| {
        let mut pair = Vec::with_capacity(context_id.len() + 1 + id.len());
        write_pair_id(context_id, id, &mut pair);
        SmallVec::from_vec(pair)
    };
    ids.iter().map(pair).collect()
}

/// Marks numbers as present, where that is wanted.
fn mark(present: &mut Option<Vec<u8>>, first: usize, count: usize) {
    if let Some(present) = present {
        (first..first + count).for_each(|bit| present[bit / 8] |= 1 << (bit % 8));
    }
}

/// Reads all rows as numbers.
pub(crate) fn read_tensor(
    context: Context<'_>,
    service: &PreparedService,
    subjects: &Subjects<'_>,
    now_ms: i64,
) -> Result<Tensor> {
    let (width, count) = (service.plan.width(), subjects.ids.len());
    let words = words(context);
    let present = service.service.with_status.then(|| vec![0; (width * count).div_ceil(8)]);
    let mut tensor = Tensor { bytes: vec![0; width * count * 4], present };
    for ((part, view), (plan, from_cache)) in parts(service).zip(&service.numbers) {
        let Tensor { bytes, present } = &mut tensor;
        if let Some(from_cache) = from_cache {
            let pairs;
            let ids = match (part.role, subjects.context_id.as_slice()) {
                (Role::Context, context_id) => context_id,
                (Role::Pair, [context_id]) => {
                    pairs = pair_ids(context_id, subjects.ids);
                    &pairs.iter().map(SmallVec::as_slice).collect::<Vec<&[u8]>>()
                }
                _ => subjects.ids,
            };
            let asked = columns::Asked { prepared: view, plan, from_cache, ids, now_ms };
            let mut own = |row: usize, column: usize| mark(present, row * width + column, 1);
            let own: Option<&mut dyn FnMut(usize, usize)> =
                if service.service.with_status { Some(&mut own) } else { None };
            if columns::read(context, &words, &asked, bytes, own)? {
                if part.role == Role::Context {
                    tensor.repeat(part, width, count);
                }
                continue;
            }
        }
        let mut reader = NumberReader::new(view, plan, now_ms);
        for (row, key) in subjects.keys(part.role, view).enumerate() {
            let Tensor { bytes, present } = &mut tensor;
            let out = &mut bytes[row * width * 4..(row + 1) * width * 4];
            reader.read(context, &words, &key, out, |place| {
                let (offset, columns) = part.columns[place];
                mark(present, row * width + offset, columns);
            })?;
        }
        if part.role == Role::Context {
            tensor.repeat(part, width, count);
        }
    }
    Ok(tensor)
}
