//! The column cache: the numbers of rows that services read as tensors, mirrored where they are found fast.
//!
//! Invariant: a row of the cache says what reading the row itself would say. Every change of a key is told by an event,
//! at once, also inside MULTI and scripts: a row that anybody else changed is forgotten, one that we change ourselves
//! follows. What the clock alone changes (values grow too old, keys expire) has its time in the cache. Whatever is in
//! doubt is read from the row: fields that expire for themselves, values that somebody left unreadable, a clock that
//! went back.

use crate::server::api::{Context, Replication, ServerString};
use crate::server::background::{Deadline, Left};
use crate::server::config;
use crate::server::key::{Key, Mode};
use crate::server::rows::{NumberReader, Rows, Times};
use crate::server::state::{words, MainThread, NumberPlan, PreparedView, Words, STATE};
use feature_store_core::codec::Expiry;
use feature_store_core::columns::{NewRow, Remains, Table, ABSENT};
use feature_store_core::definition::FeatureView;
use feature_store_core::keys::{RowKey, TIMES, UPDATED_AT};
use feature_store_core::row::{write_columns, Status, Stored};
use feature_store_core::windows::state::ReadAt;
use feature_store_core::Result;
use lazy_static::lazy_static;
use smallvec::SmallVec;
use std::cell::RefCell;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::Arc;

/// Keys that one step of warming looks at.
const SCAN_COUNT: &[u8] = b"64";

/// Which call of [`Columns::approach`] it is.
#[derive(Clone, Copy)]
pub(crate) enum Approach {
    First,
    Second,
}

/// Asks for a line of memory without waiting for it.
fn prefetch(address: *const u8) {
    // SAFETY: the instruction is in all processors of this architecture, and harmless whatever the address is.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    // SAFETY: as above; it reads no memory that the compiler has to know of.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) address, options(nostack, readonly, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

/// What all views share.
#[derive(Default)]
struct Shared {
    views: Vec<Weak<Columns>>,
    /// How many of them have a table.
    tables: usize,
    figures: Figures,
    /// Rows were cached at this time: an earlier one is a clock that went back.
    newest_ms: i64,
    /// Memory of tables that are no more.
    remains: Remains,
    /// Where the scan of the keys stands.
    warming: Option<Vec<u8>>,
    /// The definitions that the tables are for.
    generation: u64,
    /// Counts changes that events told of.
    changes: u64,
    /// The limit as it was when it was looked at last.
    limit: usize,
}

/// What INFO tells.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Figures {
    /// Rows answered from the cache.
    pub(crate) hits: u64,
    /// Rows of cached views that had to be read.
    pub(crate) misses: u64,
    /// Rows forgotten because somebody else changed them.
    pub(crate) forgotten: u64,
    /// Its memory.
    pub(crate) bytes: usize,
    /// Its rows.
    pub(crate) rows: usize,
    /// It is being filled.
    pub(crate) is_warming: bool,
}

lazy_static! {
    static ref SHARED: MainThread<Shared> = MainThread::new(Shared::default());
}

/// After so many rows in turn that could not be kept, only one in so many is tried.
const REFUSALS_MAX: u32 = 64;

/// What a row says: its numbers, little-endian float32, and a bit for each that is its own.
#[derive(Default)]
struct RowRead {
    numbers: Vec<u8>,
    own: Vec<u32>,
}

/// How a row is read for the cache.
#[derive(Clone, Copy)]
struct Fill<'a> {
    mode: Mode,
    fields_may_expire: bool,
    /// What must be mirrored for the answer to be of use; `None`: anything.
    wanted: Option<&'a Rc<NumberPlan>>,
}

fn limit() -> usize {
    usize::try_from(config::COLUMN_CACHE_BYTES_MAX.get()).unwrap_or(0)
}

/// The cache of a version of a view.
pub(crate) struct Columns {
    /// The definition whose rows it mirrors.
    view: Arc<FeatureView>,
    mirror: RefCell<Option<Mirror>>,
}

struct Mirror {
    table: Table,
    /// All features that are mirrored.
    plan: Rc<NumberPlan>,
    /// How many rows in turn could not be kept.
    refusals: u32,
    /// By feature: where its numbers are, and how many.
    numbers_of: Vec<Option<(usize, usize)>>,
}

/// How the features that a service reads of a view come from the cache.
pub(crate) struct FromCache {
    /// What was mirrored when this was planned.
    mirrored: Rc<NumberPlan>,
    /// From which number of a row to which column, and how many.
    runs: Vec<(usize, usize, usize)>,
    /// What stands elsewhere: windows.
    others: Option<NumberPlan>,
}

impl Columns {
    /// For a definition; what is known of the same one goes on.
    pub(crate) fn of(view: &Arc<FeatureView>, known: Option<&Rc<Columns>>) -> Rc<Self> {
        match known {
            Some(known) if Arc::ptr_eq(&known.view, view) => Rc::clone(known),
            _ => Rc::new(Columns { view: Arc::clone(view), mirror: RefCell::new(None) }),
        }
    }

    /// Mirrors these features from now on, in rising order.
    pub(crate) fn mirror(self: &Rc<Self>, context: Context<'_>, prepared: &PreparedView, features: Vec<usize>) {
        let is_same = match &*self.mirror.borrow() {
            Some(mirror) => mirror.plan.features == features,
            None => features.is_empty(),
        };
        if is_same {
            return;
        }
        let mut shared = SHARED.borrow_mut(context);
        if let Some(mut old) = self.mirror.take() {
            shared.tables -= 1;
            shared.give_up(&mut old.table);
        }
        if features.is_empty() {
            return;
        }
        // Features without a number are in no tensor.
        let widths = self.view.tensor_columns(&features).unwrap_or_default();
        let (mut columns, mut width) = (Vec::new(), 0);
        let mut numbers_of = vec![None; self.view.features().len()];
        for (feature, count) in features.iter().zip(widths) {
            columns.push((width, count));
            numbers_of[*feature] = Some((width, count));
            width += count;
        }
        let seed = RandomState::new().build_hasher().finish();
        let plan = Rc::new(NumberPlan::new(prepared, &features, columns, width));
        let table = Table::new(width, seed);
        *self.mirror.borrow_mut() = Some(Mirror { table, plan, refusals: 0, numbers_of });
        shared.tables += 1;
        shared.views.retain(|known| known.upgrade().is_some_and(|known| !Rc::ptr_eq(&known, self)));
        shared.views.push(Rc::downgrade(self));
        shared.warming = Some(b"0".to_vec());
    }

    /// How these features come from the cache. `None`: it does not have them.
    pub(crate) fn source_of(&self, prepared: &PreparedView, asked: &NumberPlan) -> Option<FromCache> {
        let mirror = self.mirror.borrow();
        let mirror = mirror.as_ref()?;
        let (mut runs, mut others): (Vec<(usize, usize, usize)>, Vec<usize>) = (Vec::new(), Vec::new());
        for (place, feature) in asked.features.iter().enumerate() {
            let (to, count) = asked.columns[place];
            match (mirror.numbers_of[*feature], runs.last_mut()) {
                (Some((from, _)), Some(last)) if last.0 + last.2 == from && last.1 + last.2 == to => last.2 += count,
                (Some((from, _)), _) => runs.push((from, to, count)),
                (None, _) if self.view.features()[*feature].window.is_some() => others.push(place),
                (None, _) => return None,
            }
        }
        if runs.is_empty() {
            return None;
        }
        let others = (!others.is_empty()).then(|| {
            let features: Vec<usize> = others.iter().map(|place| asked.features[*place]).collect();
            let columns = others.iter().map(|place| asked.columns[*place]).collect();
            NumberPlan::new(prepared, &features, columns, asked.width)
        });
        Some(FromCache { mirrored: Rc::clone(&mirror.plan), runs, others })
    }

    /// A row is about to be changed by us: asks for the memory that [`Columns::follow`] will need. To be called early,
    /// and again a little later.
    pub(crate) fn approach(&self, id: &[u8], step: Approach) {
        if let Some(Mirror { table, .. }) = &*self.mirror.borrow() {
            match step {
                Approach::First => table.approach(id, prefetch),
                Approach::Second => table.approach_record(id, prefetch),
            }
        }
    }

    /// A row was changed by us and says this now. Call it before anybody hears of it.
    pub(crate) fn follow<'f>(
        &self,
        context: Context<'_>,
        id: &[u8],
        key: &Key<'_>,
        event_time_ms: i64,
        expiry: Expiry,
        fields: impl Iterator<Item = (usize, Option<&'f [u8]>)>,
    ) {
        let mut mirror = self.mirror.borrow_mut();
        let Some(Mirror { table, numbers_of, plan, .. }) = &mut *mirror else { return };
        let now_ms = context.now_ms();
        let mut is_known = true;
        {
            let Some(mut row) = table.edit(id) else { return };
            // What was too old before may be of a row that is no more.
            is_known &= now_ms <= row.fresh_until_ms();
            let (mut fresh_until_ms, mut changed) = (i64::MAX, 0);
            let mut numbers: SmallVec<[u8; 64]> = SmallVec::new();
            for (feature, field) in fields {
                let Some((first, count)) = numbers_of[feature] else { continue };
                let definition = &self.view.features()[feature];
                let value = field.and_then(|field| Stored::Field(field).value(definition));
                let until_ms = match (self.view.age_ms_max(feature), &value) {
                    (Some(max), Some(_)) => event_time_ms.saturating_add(max),
                    _ => i64::MAX,
                };
                numbers.clear();
                numbers.resize(count * 4, 0);
                is_known &= write_columns(&self.view, feature, value.as_ref(), &mut numbers);
                is_known &= value.is_some() == field.is_some() && now_ms <= until_ms;
                row.set_numbers(first, &numbers, value.is_some());
                fresh_until_ms = fresh_until_ms.min(until_ms);
                changed += 1;
            }
            if changed < plan.features.len() {
                // The others are as old as they were.
                fresh_until_ms = fresh_until_ms.min(row.fresh_until_ms());
            }
            let last_ms = match expiry {
                Expiry::At(at) => at - 1,
                Expiry::Remove => i64::MAX,
                Expiry::Keep => last_ms_of(key),
            };
            row.set_fresh_until_ms(fresh_until_ms.min(last_ms));
        }
        if !is_known {
            self.forget_in(context, table, id);
        }
    }

    fn forget_in(&self, context: Context<'_>, table: &mut Table, id: &[u8]) {
        let before = table.bytes();
        if table.remove(id) {
            SHARED.borrow_mut(context).note(before, table.bytes(), -1);
        }
    }

    /// Somebody else changed a row.
    fn forget(&self, context: Context<'_>, id: &[u8]) {
        if let Some(mirror) = &mut *self.mirror.borrow_mut() {
            let rows = mirror.table.rows();
            self.forget_in(context, &mut mirror.table, id);
            if mirror.table.rows() < rows {
                SHARED.borrow_mut(context).figures.forgotten += 1;
            }
        }
    }

    fn forget_all(&self, shared: &mut Shared) {
        if let Some(mirror) = &mut *self.mirror.borrow_mut() {
            shared.give_up(&mut mirror.table);
        }
    }

    /// Reads a row for the cache and keeps it where it can. `read` is what it says. False: it was not read, the row
    /// itself has to say.
    fn fill(
        &self,
        context: Context<'_>,
        prepared: &PreparedView,
        name: &ServerString,
        now_ms: i64,
        Fill { mode, fields_may_expire, wanted }: Fill<'_>,
        read: &mut RowRead,
    ) -> Result<bool> {
        let Some(plan) = self.plan_to_fill().filter(|plan| wanted.is_none_or(|wanted| Rc::ptr_eq(plan, wanted))) else {
            return Ok(false);
        };
        let RowRead { numbers, own } = read;
        numbers.clear();
        numbers.resize(plan.width * 4, 0);
        own.clear();
        own.resize(plan.width.div_ceil(32), 0);
        let changes = SHARED.borrow(context).changes;
        let mut rows = Rows::new(prepared, &plan.features, Times::IfAged, ReadAt::Clock(now_ms)).opened_for(mode);
        rows.read(context, &words(context), name)?;
        let is_missing = !rows.exists(0);
        if !is_missing && fields_may_expire && prepared.packing.is_none() {
            // Asking marks the key as used, which a look alone must not do.
            if mode == Mode::Peek || has_fields_that_expire(context, prepared, &plan.features, name) {
                self.count_refusal();
                return Ok(false);
            }
        }
        let key = Key::open(context, name, mode);
        let (is_gone, mut fresh_until_ms) = (key.is_empty(), last_ms_of(&key));
        drop(key);
        for (place, (feature, (first, count))) in plan.features.iter().zip(&plan.columns).enumerate() {
            let served = rows.serve(0, place);
            let out = &mut numbers[first * 4..(first + count) * 4];
            let has_number = write_columns(&self.view, *feature, served.value.as_ref(), out);
            match served.status {
                Status::Present if has_number => {}
                Status::Present | Status::Invalid => {
                    self.count_refusal();
                    return Ok(false);
                }
                Status::Default | Status::NotFound | Status::OutsideMaxAge => continue,
            }
            (*first..first + count).for_each(|i| own[i / 32] |= 1 << (i % 32));
            if let (Some(time), Some(max)) = (served.event_time_ms, self.view.age_ms_max(*feature)) {
                fresh_until_ms = fresh_until_ms.min(time.saturating_add(max));
            }
        }
        // Opening keys may delete some that have expired, and whoever hears of that may do anything.
        let is_as_read = SHARED.borrow(context).changes == changes;
        if !is_missing && !is_gone && is_as_read {
            let id = &name.bytes()[prepared.row_prefix.len()..];
            self.keep(context, id, &NewRow { fresh_until_ms, numbers, own }, now_ms);
        }
        Ok(true)
    }

    /// What is read to fill it; nothing, mostly, where row after row could not be kept.
    fn plan_to_fill(&self) -> Option<Rc<NumberPlan>> {
        let mut mirror = self.mirror.borrow_mut();
        let mirror = mirror.as_mut()?;
        if mirror.refusals >= REFUSALS_MAX && mirror.refusals % REFUSALS_MAX != 0 {
            mirror.refusals = mirror.refusals.wrapping_add(1);
            return None;
        }
        Some(Rc::clone(&mirror.plan))
    }

    fn count_refusal(&self) {
        if let Some(mirror) = &mut *self.mirror.borrow_mut() {
            mirror.refusals = mirror.refusals.wrapping_add(1);
        }
    }

    fn keep(&self, context: Context<'_>, id: &[u8], row: &NewRow<'_>, now_ms: i64) {
        let mut shared = SHARED.borrow_mut(context);
        let growth = self.mirror.borrow().as_ref().map_or(0, |mirror| mirror.table.growth_bytes(id));
        // Copies of rows must not push out rows, nor keep writers out.
        let may_grow = context.has_memory_for(growth) && shared.make_room(growth, self);
        if let Some(Mirror { table, refusals, .. }) = &mut *self.mirror.borrow_mut() {
            *refusals = 0;
            let (bytes, rows) = (table.bytes(), table.rows() as i64);
            table.insert(id, row, may_grow);
            shared.note(bytes, table.bytes(), table.rows() as i64 - rows);
        }
        shared.newest_ms = shared.newest_ms.max(now_ms);
    }
}

impl Drop for Columns {
    fn drop(&mut self) {
        if let Some(mirror) = self.mirror.get_mut() {
            // SAFETY: what prepared views hold is dropped where they are: on the main thread.
            unsafe {
                Context::with_detached(|context| {
                    let mut shared = SHARED.borrow_mut(context);
                    shared.tables -= 1;
                    shared.give_up(&mut mirror.table);
                });
            }
        }
    }
}

impl Shared {
    fn note(&mut self, bytes_before: usize, bytes: usize, rows: i64) {
        self.figures.bytes = self.figures.bytes + bytes - bytes_before;
        self.figures.rows = (self.figures.rows as i64 + rows) as usize;
    }

    /// Empties a table; its memory goes little by little.
    fn give_up(&mut self, table: &mut Table) {
        self.note(table.bytes(), 0, -(table.rows() as i64));
        self.remains.append(table.clear());
    }

    /// Makes room for that much in one of the views, at the cost of whichever takes most. False: it is that one itself.
    fn make_room(&mut self, growth: usize, wanting: &Columns) -> bool {
        let limit = limit();
        while self.figures.bytes + growth > limit {
            let bytes = |columns: &Rc<Columns>| columns.mirror.borrow().as_ref().map_or(0, |m| m.table.bytes());
            let largest = self.views.iter().filter_map(Weak::upgrade).max_by_key(bytes);
            let Some(largest) = largest.filter(|largest| !std::ptr::eq(&**largest, wanting)) else { return false };
            if !self.shrink(&largest) {
                return false;
            }
        }
        true
    }

    fn shrink(&mut self, columns: &Columns) -> bool {
        let Some(Mirror { table, .. }) = &mut *columns.mirror.borrow_mut() else { return false };
        let (bytes, rows) = (table.bytes(), table.rows() as i64);
        let shrunk = table.shrink();
        self.note(bytes, table.bytes(), table.rows() as i64 - rows);
        shrunk
    }
}

/// The last millisecond at which a key is there.
fn last_ms_of(key: &Key<'_>) -> i64 {
    key.expires_at_ms().map_or(i64::MAX, |at| at - 1)
}

/// Are there hashes whose fields expire one by one (Valkey 9)? Such fields go without an event when they are read.
fn fields_may_expire(context: Context<'_>) -> bool {
    let reply = context.call(c"INFO", &[b"keyspace"], Replication::Local);
    let text = reply.as_element().bytes().map(String::from_utf8_lossy).unwrap_or_default();
    let Some(of_store) = text.lines().find(|line| line.starts_with("db0:")) else { return true };
    // Valkey 8 has no such fields, and does not count them.
    of_store.split_once("keys_with_volatile_items=").is_some_and(|(_, count)| !count.starts_with('0'))
}

/// Is this one of them, as far as it matters to these features?
fn has_fields_that_expire(
    context: Context<'_>,
    prepared: &PreparedView,
    features: &[usize],
    name: &ServerString,
) -> bool {
    let count = (features.len() + 2).to_string();
    let mut arguments: Vec<&[u8]> =
        vec![name.bytes(), b"FIELDS", count.as_bytes(), UPDATED_AT.as_bytes(), TIMES.as_bytes()];
    arguments.extend(features.iter().map(|feature| prepared.view.features()[*feature].name.as_bytes()));
    let reply = context.call(c"HPEXPIRETIME", &arguments, Replication::Local);
    // Whatever is no answer is a doubt.
    let mut times = reply.as_element().elements().peekable();
    let expires = times.peek().is_none() || times.any(|at| at.integer().is_none_or(|at| at >= 0));
    expires
}

/// The name of the row of which we are telling others, by its address, and how many events came with it.
static TELLING: AtomicUsize = AtomicUsize::new(0);
static TOLD: AtomicU32 = AtomicU32::new(0);

/// Is this event one of those that we fire ourselves? `key`: the address of the name that comes with it.
pub(crate) fn is_own_event(key: usize) -> bool {
    let is_own = TELLING.load(Ordering::Relaxed) == key;
    if is_own {
        TOLD.fetch_add(1, Ordering::Relaxed);
    }
    is_own
}

/// Somebody else changed a key.
pub(crate) fn key_changed(context: Context<'_>, key: &[u8]) {
    {
        let mut shared = SHARED.borrow_mut(context);
        // Of another database or not: a COPY inside MULTI says the wrong one (9.1), and to forget costs little.
        if shared.tables == 0 {
            return;
        }
        shared.changes += 1;
    }
    if let Ok(row) = RowKey::parse(key) {
        let prepared = STATE.borrow(context).view_of(&row);
        if let Ok(prepared) = prepared {
            prepared.columns.forget(context, row.entity_id);
        }
    }
}

/// Runs what tells others of our own change of a row: so many events. If there are others, somebody changed it again.
pub(crate) fn while_telling(
    context: Context<'_>,
    prepared: &PreparedView,
    name: &ServerString,
    tell: impl FnOnce() -> u32,
) {
    let is_mirrored = prepared.columns.mirror.borrow().is_some();
    if !is_mirrored {
        tell();
        return;
    }
    let outer = (TELLING.swap(name.as_ptr() as usize, Ordering::Relaxed), TOLD.swap(0, Ordering::Relaxed));
    let expected = tell();
    TELLING.store(outer.0, Ordering::Relaxed);
    // Whoever passes the name on that came with our event is counted too.
    if TOLD.swap(outer.1, Ordering::Relaxed) != expected {
        prepared.columns.forget(context, &name.bytes()[prepared.row_prefix.len()..]);
    }
}

/// Mirrors what the services as they are now read as tensors. Costs nothing when no definition has changed.
pub(crate) fn settle(context: Context<'_>) {
    let wanted = {
        let state = STATE.borrow(context);
        if SHARED.borrow(context).generation == state.generation() {
            return;
        }
        SHARED.borrow_mut(context).generation = state.generation();
        state.read_as_tensors()
    };
    for (prepared, features) in wanted {
        prepared.columns.mirror(context, &prepared, features);
    }
}

/// Nothing that was known holds any more.
pub(crate) fn forget_all(context: Context<'_>) {
    let mut shared = SHARED.borrow_mut(context);
    let views: Vec<Rc<Columns>> = shared.views.iter().filter_map(Weak::upgrade).collect();
    views.iter().for_each(|columns| columns.forget_all(&mut shared));
    shared.newest_ms = 0;
}

/// Fills the cache from the rows that are there.
pub(crate) fn warm(context: Context<'_>) {
    let mut shared = SHARED.borrow_mut(context);
    if shared.tables > 0 {
        shared.warming = Some(b"0".to_vec());
    }
}

/// Reads rows of a view as numbers, by id. `out`: a row of the answer each.
pub(crate) struct Asked<'a> {
    pub(crate) prepared: &'a PreparedView,
    pub(crate) plan: &'a NumberPlan,
    pub(crate) from_cache: &'a FromCache,
    pub(crate) ids: &'a [&'a [u8]],
    pub(crate) now_ms: i64,
}

/// Reads rows, from the cache where it has them. `own` is shown the row and the column of numbers that are the row's
/// own. False: the cache cannot be asked now, nothing was read.
pub(crate) fn read(
    context: Context<'_>,
    words: &Words,
    asked: &Asked<'_>,
    out: &mut [u8],
    mut own: Option<&mut dyn FnMut(usize, usize)>,
) -> Result<bool> {
    let Asked { prepared, plan, from_cache, ids, now_ms } = *asked;
    // While we tell others of a change, its row may change again before we know.
    if TELLING.load(Ordering::Relaxed) != 0 || limit() == 0 {
        return Ok(false);
    }
    if now_ms < SHARED.borrow(context).newest_ms {
        // The clock went back: what was too old then may be fresh now.
        forget_all(context);
        warm(context);
    }
    let row_bytes = plan.width * 4;
    let mut missed: SmallVec<[usize; 64]> = SmallVec::new();
    {
        let mut mirror = prepared.columns.mirror.borrow_mut();
        let Some(Mirror { table, plan: mirrored, .. }) = &mut *mirror else { return Ok(false) };
        if !Rc::ptr_eq(mirrored, &from_cache.mirrored) {
            return Ok(false);
        }
        let mut slots = Vec::with_capacity(ids.len());
        table.find_all(ids, &mut slots, prefetch);
        for (row, slot) in slots.into_iter().enumerate() {
            if slot == ABSENT || !table.is_fresh(slot, now_ms) {
                missed.push(row);
                continue;
            }
            table.copy(slot, &from_cache.runs, &mut out[row * row_bytes..(row + 1) * row_bytes]);
            table.note_read(slot);
            if let Some(own) = &mut own {
                let numbers = from_cache.runs.iter().flat_map(|(from, to, n)| (0..*n).map(move |i| (from + i, to + i)));
                numbers.filter(|(from, _)| table.is_own(slot, *from)).for_each(|(_, to)| own(row, to));
            }
        }
    }
    {
        let figures = &mut SHARED.borrow_mut(context).figures;
        figures.hits += (ids.len() - missed.len()) as u64;
        figures.misses += missed.len() as u64;
    }
    let mut reader = None;
    let mut read = RowRead::default();
    let fields_may_expire = !missed.is_empty() && fields_may_expire(context);
    let how = Fill { mode: Mode::Read, fields_may_expire, wanted: Some(&from_cache.mirrored) };
    let mut name_of = KeyNames::new(prepared);
    for row in &missed {
        let name = name_of.of(ids[*row]);
        let out = &mut out[row * row_bytes..(row + 1) * row_bytes];
        if prepared.columns.fill(context, prepared, &name, now_ms, how, &mut read)? {
            let RowRead { numbers, own: bits } = &read;
            for (from, to, count) in &from_cache.runs {
                out[to * 4..(to + count) * 4].copy_from_slice(&numbers[from * 4..(from + count) * 4]);
                if let Some(own) = &mut own {
                    let is_own = |i: &usize| bits[(from + i) / 32] >> ((from + i) % 32) & 1 == 1;
                    (0..*count).filter(is_own).for_each(|i| own(*row, to + i));
                }
            }
        } else {
            let reader = reader.get_or_insert_with(|| NumberReader::new(prepared, plan, now_ms).uncounted());
            reader.read(context, words, &name, out, |place| {
                let (first, count) = plan.columns[place];
                own.iter_mut().for_each(|own| (first..first + count).for_each(|column| own(*row, column)));
            })?;
        }
    }
    if let Some(others) = &from_cache.others {
        let mut reader = NumberReader::new(prepared, others, now_ms);
        for (row, id) in ids.iter().enumerate() {
            let out = &mut out[row * row_bytes..(row + 1) * row_bytes];
            reader.read(context, words, &name_of.of(id), out, |place| {
                let (first, count) = others.columns[place];
                own.iter_mut().for_each(|own| (first..first + count).for_each(|column| own(row, column)));
            })?;
        }
    }
    if from_cache.others.is_none() {
        STATE.borrow_mut(context).counters.rows_served += ids.len() as u64;
    }
    Ok(true)
}

/// Names of rows' keys, one after the other.
pub(crate) struct KeyNames<'v> {
    prefix: &'v str,
    name: Vec<u8>,
}

impl<'v> KeyNames<'v> {
    pub(crate) fn new(prepared: &'v PreparedView) -> Self {
        KeyNames { prefix: &prepared.row_prefix, name: prepared.row_prefix.clone().into_bytes() }
    }

    pub(crate) fn of(&mut self, id: &[u8]) -> ServerString {
        self.name.truncate(self.prefix.len());
        self.name.extend_from_slice(id);
        ServerString::new(&self.name)
    }
}

/// Frees, shrinks and warms until the deadline.
pub(crate) fn slice(context: Context<'_>, deadline: Deadline) -> Left {
    settle(context);
    while SHARED.borrow_mut(context).remains.free_some() {
        if deadline.is_over() {
            return Left::Work;
        }
    }
    let limit = limit();
    {
        let mut shared = SHARED.borrow_mut(context);
        if std::mem::replace(&mut shared.limit, limit) < limit && shared.tables > 0 {
            shared.warming = Some(b"0".to_vec());
        }
        while shared.figures.bytes > limit {
            let views: Vec<Rc<Columns>> = shared.views.iter().filter_map(Weak::upgrade).collect();
            if !views.iter().any(|columns| shared.shrink(columns)) {
                break;
            }
            if deadline.is_over() {
                return Left::Work;
            }
        }
        if limit == 0 || shared.tables == 0 {
            shared.warming = None;
        }
    }
    while SHARED.borrow(context).warming.is_some() {
        warm_some(context);
        if deadline.is_over() {
            return Left::Work;
        }
    }
    Left::Nothing
}

/// A step over the keys.
fn warm_some(context: Context<'_>) {
    let Some(cursor) = SHARED.borrow(context).warming.clone() else { return };
    let reply = context.call(c"SCAN", &[&cursor, b"MATCH", b"fs:v*", b"COUNT", SCAN_COUNT], Replication::Local);
    let mut parts = reply.as_element().elements();
    let next = parts.next().and_then(|c| c.bytes()).unwrap_or(b"0").to_vec();
    let mut read = RowRead::default();
    let (now_ms, limit) = (context.now_ms(), limit());
    let how = Fill { mode: Mode::Peek, fields_may_expire: fields_may_expire(context), wanted: None };
    let mut is_full = false;
    for key in parts.next().iter().flat_map(|keys| keys.elements()).filter_map(|key| key.bytes()) {
        let Ok(row) = RowKey::parse(key) else { continue };
        let prepared = STATE.borrow(context).view_of(&row);
        let Ok(prepared) = prepared else { continue };
        let growth = match &*prepared.columns.mirror.borrow() {
            Some(mirror) if mirror.table.find(row.entity_id).is_none() => mirror.table.growth_bytes(row.entity_id),
            _ => continue,
        };
        // What is read soon after may take the place of others; what is only there may not.
        if SHARED.borrow(context).figures.bytes + growth > limit || !context.has_memory_for(growth) {
            is_full = true;
            continue;
        }
        let name = ServerString::new(key);
        // A key that is no row is told to who reads it.
        let _ = prepared.columns.fill(context, &prepared, &name, now_ms, how, &mut read);
    }
    let mut shared = SHARED.borrow_mut(context);
    shared.warming = (next != b"0" && !is_full).then_some(next);
}

/// What INFO tells.
pub(crate) fn figures(context: Context<'_>) -> Figures {
    let shared = SHARED.borrow(context);
    Figures { is_warming: shared.warming.is_some(), ..shared.figures }
}
