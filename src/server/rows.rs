//! Rows: reading them for serving.

use crate::server::api::{Context, ServerString};
use crate::server::key::{Key, KeyType, Mode};
use crate::server::logs::add;
use crate::server::state::{words, NumberPlan, PreparedView, Words, STATE};
use crate::server::window_type::OtherType;
use crate::server::windows::wrong_type as wrong_type_of_state;
use feature_store_core::definition::FeatureView;
use feature_store_core::error::shown;
use feature_store_core::keys::{TIMES, UPDATED_AT};
use feature_store_core::materialize::RowTimes;
use feature_store_core::packed::{PackedRow, Packing};
use feature_store_core::row::{self, serve, serve_window, Served, Status, Stored};
use feature_store_core::windows::state::{ReadAt, TooOld, WindowState};
use feature_store_core::{Code, Error, Result};
use smallvec::SmallVec;
use std::borrow::Cow;

/// From this many look-ups on, one pass over the row beats looking each field up.
const SCAN_FROM_LOOK_UPS: usize = 7;

/// Does the reader need event times although no TTL rules the features?
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Times {
    /// Only where a TTL rules.
    IfAged,
    /// Always: they are part of the answer.
    Always,
}

/// The error for a row's key that holds something else.
pub(crate) fn wrong_type(key: &ServerString, prepared: &PreparedView) -> Error {
    let what = match &prepared.packing {
        None => "a row (a hash)".to_owned(),
        Some(_) => format!("a packed row of view '{}'", prepared.view.name),
    };
    Error::new(Code::WrongType, format!("key '{}' does not hold {what}", shown(key.bytes())))
}

/// Where a stored field lies among the copied bytes; `start > end` for one that is not there.
#[derive(Clone, Copy)]
struct Span {
    start: usize,
    end: usize,
}

/// A feature that was not asked for.
const NOT_ASKED: usize = usize::MAX;

const ABSENT: Span = Span { start: 1, end: 0 };

/// Rows as they were read: the fields that a reader asked for, copied out. One row needs no allocation.
pub(crate) struct Rows<'v> {
    prepared: &'v PreparedView,
    /// What was asked for.
    features: &'v [usize],
    needs_times: bool,
    /// For a pass over a row, by feature index: its first place in what was asked for. Empty when rows are looked up.
    places: SmallVec<[usize; 32]>,
    bytes: SmallVec<[u8; 512]>,
    /// Row by row, as many as features.
    fields: SmallVec<[Span; 32]>,
    rows: SmallVec<[RowFacts; 1]>,
    /// By place: which of the windows asked for stands there. Empty when none is.
    window_at: SmallVec<[Option<usize>; 8]>,
    /// How many windows were asked for.
    windows: usize,
    /// What is served for them, row by row.
    window_values: Vec<Served<'static>>,
    /// The hash is read: there is something in it that was asked for.
    reads_row: bool,
    at: ReadAt,
    mode: Mode,
}

#[derive(Default)]
struct RowFacts {
    exists: bool,
    /// It is there but none that this view packed.
    is_unreadable: bool,
    times: RowTimes,
}

impl<'v> Rows<'v> {
    pub(crate) fn new(prepared: &'v PreparedView, features: &'v [usize], times: Times, at: ReadAt) -> Self {
        let schema = prepared.view.features();
        let (mut windows, mut window_at) = (0, SmallVec::new());
        if prepared.windows.is_some() && features.iter().any(|f| schema[*f].window.is_some()) {
            window_at.extend(features.iter().map(|f| {
                schema[*f].window.is_some().then(|| {
                    windows += 1;
                    windows - 1
                })
            }));
        }
        let ages = |f: &usize| prepared.view.age_ms_max(*f).is_some() && schema[*f].is_stored();
        let needs_times = times == Times::Always || matches!(at, ReadAt::Named(_)) || features.iter().any(ages);
        let look_ups = features.len() - windows + if needs_times { 2 } else { 0 };
        let mut places = SmallVec::new();
        if look_ups >= SCAN_FROM_LOOK_UPS && prepared.packing.is_none() {
            places.resize(prepared.view.features().len(), NOT_ASKED);
            features.iter().enumerate().rev().for_each(|(place, feature)| places[*feature] = place);
        }
        Rows {
            prepared,
            features,
            needs_times,
            places,
            bytes: SmallVec::new(),
            fields: SmallVec::new(),
            rows: SmallVec::new(),
            window_at,
            windows,
            window_values: Vec::new(),
            reads_row: times == Times::Always || windows < features.len(),
            at,
            mode: Mode::Read,
        }
    }

    /// The same, with keys opened in another mode.
    pub(crate) fn opened_for(self, mode: Mode) -> Self {
        Rows { mode, ..self }
    }

    /// Forgets the rows that were read.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.fields.clear();
        self.rows.clear();
        self.window_values.clear();
    }

    /// Reads one more row. A missing row is a row without values.
    pub(crate) fn read(&mut self, context: Context<'_>, words: &Words, name: &ServerString) -> Result<()> {
        let first = self.fields.len();
        self.fields.resize(first + self.features.len(), ABSENT);
        if self.windows > 0 {
            self.read_windows(context, name)?;
        }
        if !self.reads_row {
            self.rows.push(RowFacts::default());
            return Ok(());
        }
        let key = Key::open(context, name, self.mode);
        let facts = match (key.key_type(), &self.prepared.packing) {
            (KeyType::Empty, _) => RowFacts::default(),
            (KeyType::String, Some(packing)) => self.unpack(packing, key.string().unwrap_or_default(), first),
            (KeyType::Hash, None) if !self.places.is_empty() => RowFacts::of(self.scan(&key, first)),
            (KeyType::Hash, None) => RowFacts::of(self.look_up(&key, words, first)),
            _ => return Err(wrong_type(name, self.prepared)),
        };
        self.rows.push(facts);
        Ok(())
    }

    fn unpack(&mut self, packing: &Packing, bytes: &[u8], first: usize) -> RowFacts {
        let Some(row) = packing.open(bytes) else {
            return RowFacts { exists: true, is_unreadable: true, times: RowTimes::default() };
        };
        let base = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        for (feature, span) in self.features.iter().zip(&mut self.fields[first..]) {
            if let Some((start, end)) = row.span_of(*feature) {
                *span = Span { start: base + start, end: base + end };
            }
        }
        RowFacts::of(if self.needs_times { row.times() } else { RowTimes::default() })
    }

    fn read_windows(&mut self, context: Context<'_>, name: &ServerString) -> Result<()> {
        let PreparedView { view, windows, row_prefix, .. } = self.prepared;
        let Some(windows) = windows else { return Ok(()) };
        let state_name = windows.key_of(&name.bytes()[row_prefix.len()..]);
        let mut key = Key::open(context, &state_name, Mode::Read);
        let state = key.window_state().map_err(|OtherType| wrong_type_of_state(&state_name))?;
        let state = state.as_deref().filter(|state| windows.counts(state));
        let newest_ms = state.and_then(WindowState::newest_ms);
        for (place, feature) in self.features.iter().enumerate() {
            if self.window_at[place].is_none() {
                continue;
            }
            let Some(window) = &view.features()[*feature].window else { continue };
            let value = match state.and_then(|state| Some((state, windows.reading(view, *feature, state)?))) {
                Some((state, reading)) => {
                    state.read(&reading, self.at).map_err(|TooOld| too_old(view, *feature, name, self.at))?
                }
                None => window.function.over_no_events(),
            };
            self.window_values.push(serve_window(view, *feature, value, newest_ms));
        }
        Ok(())
    }

    fn scan(&mut self, key: &Key<'_>, first: usize) -> RowTimes {
        let Rows { prepared, features, needs_times, places, bytes, fields, .. } = self;
        let (mut updated_at, mut row_times) = (None, None);
        let mut expected = 0;
        key.hash_scan(|field, value| {
            // Features cannot begin with an underscore.
            if field.first() == Some(&b'_') {
                if *needs_times && field == UPDATED_AT.as_bytes() {
                    updated_at = Some(keep(bytes, value));
                } else if *needs_times && field == TIMES.as_bytes() {
                    row_times = Some(keep(bytes, value));
                }
                return;
            }
            let hint = features.get(expected).copied().unwrap_or(usize::MAX);
            let Some(place) = prepared.view.position(field, hint).map(|feature| places[feature]) else { return };
            if place != NOT_ASKED {
                fields[first + place] = keep(bytes, value);
                expected = place + 1;
            }
        });
        // A feature that was asked for again stands where it stood first.
        for (place, feature) in features.iter().enumerate().filter(|(place, feature)| places[**feature] != *place) {
            fields[first + place] = fields[first + places[*feature]];
        }
        self.read_times(updated_at, row_times)
    }

    fn look_up(&mut self, key: &Key<'_>, words: &Words, first: usize) -> RowTimes {
        let Rows { prepared, features, needs_times, bytes, fields, window_at, .. } = self;
        // Windows stand in no hash.
        let is_window = |place: usize| window_at.get(place).is_some_and(Option::is_some);
        let stored: SmallVec<[usize; 16]> = (0..features.len()).filter(|place| !is_window(*place)).collect();
        let mut names: SmallVec<[&ServerString; 16]> =
            stored.iter().map(|place| &prepared.names[features[*place]]).collect();
        if *needs_times {
            names.extend([&words.updated_at, &words.times]);
        }
        let (mut updated_at, mut row_times) = (None, None);
        key.hash_get_each(&names, |i, value| {
            let span = keep(bytes, value);
            match stored.get(i) {
                Some(place) => fields[first + place] = span,
                None if i == stored.len() => updated_at = Some(span),
                None => row_times = Some(span),
            }
        });
        self.read_times(updated_at, row_times)
    }

    fn read_times(&self, updated_at: Option<Span>, row_times: Option<Span>) -> RowTimes {
        let text = |span: Option<Span>| span.map(|s| &self.bytes[s.start..s.end]);
        RowTimes::read(&self.prepared.view, text(updated_at), text(row_times))
    }

    /// The features that were asked for.
    pub(crate) fn features(&self) -> &'v [usize] {
        self.features
    }

    /// How many rows were read.
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Is the row there?
    pub(crate) fn exists(&self, row: usize) -> bool {
        self.rows[row].exists
    }

    /// The row's times.
    pub(crate) fn times(&self, row: usize) -> &RowTimes {
        &self.rows[row].times
    }

    /// The rows were given to a reader: counts them, and takes their values into the sample where the view wants that.
    pub(crate) fn note_served(&self, context: Context<'_>) {
        STATE.borrow_mut(context).counters.rows_served += self.rows.len() as u64;
        // What was true at another time says nothing of the present.
        if let ReadAt::Clock(now_ms) = self.at {
            for row in 0..self.rows.len() {
                self.prepared.samples.serve(self.features, now_ms, |place| self.serve(row, place));
            }
        }
    }

    /// What the row holds of the feature at a place of what was asked for.
    pub(crate) fn stored(&self, row: usize, place: usize) -> Stored<'_> {
        // A field of a window's name in the hash is somebody else's.
        if matches!(self.window_at.get(place), Some(Some(_))) {
            return Stored::Absent;
        }
        let span = self.fields[row * self.features.len() + place];
        match span.start <= span.end {
            true if self.prepared.packing.is_some() => Stored::Packed(&self.bytes[span.start..span.end]),
            true => Stored::Field(&self.bytes[span.start..span.end]),
            false if self.rows[row].is_unreadable => Stored::Unreadable,
            false => Stored::Absent,
        }
    }

    /// What a reader gets for it.
    pub(crate) fn serve(&self, row: usize, place: usize) -> Cow<'_, Served<'_>> {
        if let Some(Some(window)) = self.window_at.get(place) {
            return Cow::Borrowed(&self.window_values[row * self.windows + window]);
        }
        let stored = self.stored(row, place);
        let time_ms = self.rows[row].times.of_present(self.features[place]);
        Cow::Owned(serve(&self.prepared.view, self.features[place], stored, time_ms, self.at))
    }
}

impl RowFacts {
    fn of(times: RowTimes) -> Self {
        RowFacts { exists: true, is_unreadable: false, times }
    }
}

/// One row, read. `place`: of what was asked for.
pub(crate) trait Reading {
    /// What the row holds of the feature there, and what a reader gets for it.
    fn read(&self, place: usize) -> (Stored<'_>, Cow<'_, Served<'_>>);
}

/// One of several rows.
struct RowOf<'r, 'v> {
    rows: &'r Rows<'v>,
    row: usize,
}

impl Reading for RowOf<'_, '_> {
    fn read(&self, place: usize) -> (Stored<'_>, Cow<'_, Served<'_>>) {
        (self.rows.stored(self.row, place), self.rows.serve(self.row, place))
    }
}

/// A packed row, read where it lies.
struct InPlace<'k> {
    prepared: &'k PreparedView,
    features: &'k [usize],
    /// `None`: there is none, or none that this view packed.
    row: Option<PackedRow<'k>>,
    is_unreadable: bool,
    now_ms: i64,
}

impl<'k> InPlace<'k> {
    /// Can these features be read so? Windows stand elsewhere.
    fn is_possible(prepared: &PreparedView, features: &[usize], at: ReadAt) -> bool {
        let is_window = |feature: &usize| prepared.view.features()[*feature].window.is_some();
        prepared.packing.is_some()
            && matches!(at, ReadAt::Clock(_))
            && (prepared.windows.is_none() || !features.iter().any(is_window))
    }

    fn of(
        prepared: &'k PreparedView,
        features: &'k [usize],
        key: &'k Key<'_>,
        name: &ServerString,
        now_ms: i64,
    ) -> Result<Self> {
        let bytes = match (key.string(), &prepared.packing) {
            (None, _) if key.is_empty() => None,
            (Some(bytes), Some(packing)) => Some((packing, bytes)),
            _ => return Err(wrong_type(name, prepared)),
        };
        let row = bytes.and_then(|(packing, bytes)| packing.open(bytes));
        Ok(InPlace { prepared, features, row, is_unreadable: bytes.is_some() && row.is_none(), now_ms })
    }

    fn note_served(&self, context: Context<'_>) {
        STATE.borrow_mut(context).counters.rows_served += 1;
        self.prepared.samples.serve(self.features, self.now_ms, |place| self.read(place).1);
    }
}

impl Reading for InPlace<'_> {
    fn read(&self, place: usize) -> (Stored<'_>, Cow<'_, Served<'_>>) {
        let (feature, at) = (self.features[place], ReadAt::Clock(self.now_ms));
        let (stored, time_ms) = match &self.row {
            Some(row) => match row.value_bytes(feature) {
                Some(bytes) => (Stored::Packed(bytes), row.event_time_ms(feature)),
                None => (Stored::Absent, None),
            },
            None if self.is_unreadable => (Stored::Unreadable, None),
            None => (Stored::Absent, None),
        };
        (stored, Cow::Owned(serve(&self.prepared.view, feature, stored, time_ms, at)))
    }
}

/// Reads one row and shows it.
pub(crate) fn read_one(
    context: Context<'_>,
    asked: &Asked<'_>,
    name: &ServerString,
    see: impl FnOnce(&dyn Reading),
) -> Result<()> {
    let Asked { prepared, features, times, at } = *asked;
    if InPlace::is_possible(prepared, features, at) {
        let key = Key::open(context, name, Mode::Read);
        let row = InPlace::of(prepared, features, &key, name, at.ms())?;
        see(&row);
        row.note_served(context);
        return Ok(());
    }
    let mut rows = Rows::new(prepared, features, times, at);
    rows.read(context, &words(context), name)?;
    see(&RowOf { rows: &rows, row: 0 });
    rows.note_served(context);
    Ok(())
}

/// What is read of rows.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'v> {
    /// The view.
    pub(crate) prepared: &'v PreparedView,
    /// The features, by index.
    pub(crate) features: &'v [usize],
    pub(crate) times: Times,
    pub(crate) at: ReadAt,
}

/// Reads rows as numbers, one at a time.
pub(crate) struct NumberReader<'v> {
    prepared: &'v PreparedView,
    plan: &'v NumberPlan,
    now_ms: i64,
    /// For what is not read where it lies.
    copied: Option<Box<Rows<'v>>>,
    counts: bool,
}

impl<'v> NumberReader<'v> {
    pub(crate) fn new(prepared: &'v PreparedView, plan: &'v NumberPlan, now_ms: i64) -> Self {
        let copied = || Box::new(Rows::new(prepared, &plan.features, Times::IfAged, ReadAt::Clock(now_ms)));
        NumberReader { prepared, plan, now_ms, copied: plan.steps.is_none().then(copied), counts: true }
    }

    /// The same, for who counts by itself what is served.
    pub(crate) fn uncounted(self) -> Self {
        NumberReader { counts: false, ..self }
    }

    /// Reads a row into `out`, and shows the places whose numbers are the row's own, and no defaults or NaN.
    pub(crate) fn read(
        &mut self,
        context: Context<'_>,
        words: &Words,
        name: &ServerString,
        out: &mut [u8],
        mut own: impl FnMut(usize),
    ) -> Result<()> {
        let NumberReader { prepared, plan, now_ms, copied, counts } = self;
        if let Some(rows) = copied {
            rows.clear();
            rows.read(context, words, name)?;
            let row = RowOf { rows, row: 0 };
            (0..plan.features.len()).for_each(|place| write_columns(prepared, plan, &row, place, out, &mut own));
            if *counts {
                rows.note_served(context);
            }
            return Ok(());
        }
        let key = Key::open(context, name, Mode::Read);
        let row = InPlace::of(prepared, &plan.features, &key, name, *now_ms)?;
        match (&row.row, &plan.steps) {
            (Some(packed), Some(steps)) => {
                let mut others: SmallVec<[usize; 16]> = SmallVec::new();
                steps.read(packed, *now_ms, out, &mut own, |place| others.push(place));
                others.iter().for_each(|place| write_columns(prepared, plan, &row, *place, out, &mut own));
            }
            _ => (0..plan.features.len()).for_each(|place| write_columns(prepared, plan, &row, place, out, &mut own)),
        }
        if *counts {
            row.note_served(context);
        }
        Ok(())
    }
}

/// Writes what a reader gets for a place of what was asked for.
fn write_columns(
    prepared: &PreparedView,
    plan: &NumberPlan,
    row: &impl Reading,
    place: usize,
    out: &mut [u8],
    mut own: impl FnMut(usize),
) {
    let (offset, width) = plan.columns[place];
    let (_, served) = row.read(place);
    let out = &mut out[offset * 4..(offset + width) * 4];
    let has_number = row::write_columns(&prepared.view, plan.features[place], served.value.as_ref(), out);
    match served.status {
        Status::Present if has_number => own(place),
        Status::Present | Status::Invalid => add(&prepared.log.counters.invalid_values, 1),
        Status::Default | Status::NotFound | Status::OutsideMaxAge => {}
    }
}

fn too_old(view: &FeatureView, feature: usize, key: &ServerString, at: ReadAt) -> Error {
    Error::new(
        Code::TooOld,
        format!(
            "feature '{}' of view '{}': the windows of key '{}' do not reach back to AT {}",
            view.features()[feature].name,
            view.name,
            shown(key.bytes()),
            at.ms()
        ),
    )
}

fn keep(bytes: &mut SmallVec<[u8; 512]>, value: &[u8]) -> Span {
    let start = bytes.len();
    bytes.extend_from_slice(value);
    Span { start, end: bytes.len() }
}
