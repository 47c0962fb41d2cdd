//! Windows: feeding events into the states of entities, and reading values from them.

use crate::server::api::{Context, ServerString};
use crate::server::config;
use crate::server::events::quietly;
use crate::server::key::{Key, Mode};
use crate::server::logs::{add, Log};
use crate::server::state::{PreparedView, STATE};
use crate::server::window_type::OtherType;
use feature_store_core::codec::{StateChange, WindowEffect};
use feature_store_core::definition::FeatureView;
use feature_store_core::error::shown;
use feature_store_core::keys::{row_of_window_key, window_key, window_prefix, RowKey};
use feature_store_core::stream_id::StreamId;
use feature_store_core::update::Update;
use feature_store_core::windows::layout::{Layout, Reading};
use feature_store_core::windows::seen::Sighting;
use feature_store_core::windows::state::{is_stored_form, Event, Fed, WindowState};
use feature_store_core::{Code, Error, Result};
use redis_module::raw;
use smallvec::SmallVec;
use std::sync::Arc;

/// An expiry that would move by less stays: moving it costs as much as counting the event.
const EXPIRY_STEP_MS: i64 = 1_000;

/// The windows of a version of a view, made ready for the hot path.
pub(crate) struct PreparedWindows {
    layout: Arc<Layout>,
    key_prefix: String,
    /// By feature: its place among the layout's inputs.
    input_of: Vec<Option<usize>>,
    /// By feature: how it is read, if it is a window.
    readings: Vec<Option<Reading>>,
    /// A state matters this long after an event, milliseconds.
    span_ms: i64,
    /// An event id is remembered so long, milliseconds.
    dedup_ms: Option<i64>,
    /// States of an earlier generation are void.
    generation: u32,
}

impl PreparedWindows {
    /// `None`: the view has no windows and remembers no events.
    pub(crate) fn of(view: &FeatureView, generation: u32) -> Option<Self> {
        let layout = Layout::of(view)?;
        let features = view.features();
        let windows = features.iter().filter_map(|f| f.window.as_ref());
        Some(PreparedWindows {
            key_prefix: window_prefix(&view.name, view.version),
            input_of: features.iter().map(|f| layout.input(&f.name)).collect(),
            readings: features.iter().map(|f| layout.reading(f.window.as_ref()?)).collect(),
            span_ms: windows.map(|w| w.length_ms + w.hop_ms).max().unwrap_or(0),
            dedup_ms: view.dedup_ms,
            generation,
            layout,
        })
    }

    /// The key of an entity's state.
    pub(crate) fn key_of(&self, entity_id: &[u8]) -> ServerString {
        let mut key: SmallVec<[u8; 128]> = SmallVec::from_slice(self.key_prefix.as_bytes());
        key.extend_from_slice(entity_id);
        ServerString::new(&key)
    }

    /// How a feature is read from a state; `None`: the state knows nothing of it.
    pub(crate) fn reading(&self, view: &FeatureView, feature: usize, state: &WindowState) -> Option<Reading> {
        if Arc::ptr_eq(state.layout(), &self.layout) {
            return self.readings[feature].clone();
        }
        state.layout().reading(view.features()[feature].window.as_ref()?)
    }

    /// Does the key hold a state that counts?
    pub(crate) fn are_held(&self, context: Context<'_>, name: &ServerString) -> bool {
        matches!(Key::open(context, name, Mode::Read).window_state(), Ok(Some(state)) if self.counts(state))
    }

    /// Is the state of a generation that still counts?
    pub(crate) fn counts(&self, state: &WindowState) -> bool {
        state.generation() >= self.generation
    }

    /// The bound of the state that answers a feature, bytes.
    pub(crate) fn bytes_max(&self, feature: usize) -> Option<u64> {
        let reading = self.readings[feature].as_ref()?;
        Some(self.layout.groups[reading.group].bytes_max(&self.layout, config::CLOCK_SKEW_MS_MAX.get()))
    }

    /// The inputs that an update carries, in the layout's order.
    fn inputs<'u>(&self, update: &'u Update) -> SmallVec<[Option<&'u [u8]>; 8]> {
        let mut inputs: SmallVec<[Option<&[u8]>; 8]> = SmallVec::from_elem(None, self.layout.inputs.len());
        for change in update.changes() {
            if let Some(input) = self.input_of[change.feature] {
                inputs[input] = update.field(change);
            }
        }
        inputs
    }
}

/// The error for a key of window state that holds something else.
pub(crate) fn wrong_type(name: &ServerString) -> Error {
    Error::new(Code::WrongType, format!("key '{}' does not hold a window state", shown(name.bytes())))
}

/// Refuses when the key of an entity's window state holds something else.
pub(crate) fn check_windows(context: Context<'_>, prepared: &PreparedView, entity_id: &[u8]) -> Result<()> {
    let Some(windows) = &prepared.windows else { return Ok(()) };
    let name = windows.key_of(entity_id);
    let checked =
        Key::open(context, &name, Mode::Read).window_state().map(|_| ()).map_err(|OtherType| wrong_type(&name));
    checked
}

/// An event's identity and arrival, for views that remember events.
#[derive(Clone, Copy)]
pub(crate) struct Identity<'a> {
    pub(crate) id: &'a [u8],
    /// When it came, unix milliseconds: the clock for commands, the entry's id for entries.
    pub(crate) arrived_ms: i64,
}

/// The window state of one entity, about to be fed on the primary.
pub(crate) struct Target<'a, 'w> {
    context: Context<'a>,
    windows: &'w PreparedWindows,
    name: ServerString,
    inputs: SmallVec<[Option<&'w [u8]>; 8]>,
    identity: Option<Identity<'w>>,
}

impl<'a, 'w> Target<'a, 'w> {
    /// `None`: the update neither feeds a window nor is to be remembered.
    pub(crate) fn of(
        context: Context<'a>,
        windows: &'w PreparedWindows,
        entity_id: &[u8],
        update: &'w Update,
        identity: Option<Identity<'w>>,
    ) -> Option<Self> {
        let inputs = windows.inputs(update);
        let identity = identity.filter(|_| windows.dedup_ms.is_some());
        if inputs.iter().all(Option::is_none) && identity.is_none() {
            return None;
        }
        Some(Target { context, windows, name: windows.key_of(entity_id), inputs, identity })
    }

    /// Is the event's id looked up and remembered?
    pub(crate) fn is_remembered(&self) -> bool {
        self.identity.is_some()
    }

    /// Refuses a key that holds something else. Answers the entry of the event if it was seen before.
    pub(crate) fn check(&self) -> Result<Option<Option<StreamId>>> {
        let mut key = Key::open(self.context, &self.name, Mode::Read);
        let state = key.window_state().map_err(|OtherType| wrong_type(&self.name))?;
        let state = state.filter(|state| self.windows.counts(state));
        Ok(match (state, self.identity, self.windows.dedup_ms) {
            (Some(state), Some(Identity { id, arrived_ms }), Some(dedup_ms)) => state.find(id, arrived_ms, dedup_ms),
            _ => None,
        })
    }

    /// Feeds the event. `entry` is its entry in the log. Answers what all copies are to be told.
    pub(crate) fn feed(
        &self,
        row_name: &ServerString,
        log: &Log,
        event_time_ms: i64,
        now_ms: i64,
        entry: Option<StreamId>,
    ) -> Result<WindowEffect<'w>> {
        let Target { context, windows, name, inputs, identity } = self;
        let mut key = Key::open(*context, name, Mode::Write);
        let state = key.window_state().map_err(|OtherType| wrong_type(name))?;
        let (state, is_new) = match state.as_deref() {
            Some(state) if !windows.counts(state) => {
                (StateChange::New(windows.layout.encoded(), windows.generation), true)
            }
            Some(state) if Arc::ptr_eq(state.layout(), &windows.layout) => (StateChange::Keep, false),
            Some(_) => (StateChange::Relayout(windows.layout.encoded()), false),
            None => (StateChange::New(windows.layout.encoded(), windows.generation), true),
        };
        let is_event = inputs.iter().any(Option::is_some);
        let mut expires = None;
        let seen = identity.zip(windows.dedup_ms).map(|(Identity { id, arrived_ms }, remember_ms)| {
            let ids_max = u32::try_from(config::DEDUP_IDS_MAX.get()).unwrap_or(u32::MAX);
            // Entries that are still to be read may have come long before this one.
            let first_to_come_ms = oldest_to_come_ms(*context, log).unwrap_or(arrived_ms).min(arrived_ms);
            let forget_before_ms = first_to_come_ms.saturating_sub(remember_ms);
            expires = Some(now_ms.saturating_add(remember_ms));
            Sighting { id, arrived_ms, entry, forget_before_ms, ids_max }
        });
        let expires_at_ms = {
            let of_event = is_event.then(|| event_time_ms.max(now_ms).saturating_add(windows.span_ms));
            let present = if is_new { None } else { key.expires_at_ms() };
            of_event.max(expires).filter(|at| present.is_none_or(|present| at - present >= EXPIRY_STEP_MS))
        };
        let effect = WindowEffect { arrived_ms: now_ms, state, is_event, seen, expires_at_ms };
        let (fed, forgotten) = quietly(|| execute(*context, &mut key, row_name, &effect, event_time_ms, inputs))
            .map_err(|why| Error::syntax(format!("internal error: {why}")))?;
        let counters = &log.counters;
        add(&counters.window_events, u64::from(effect.is_event));
        add(&counters.late_events, u64::from(fed.is_late));
        add(&counters.too_late_events, u64::from(fed.is_too_late));
        add(&counters.dedup_overflows, forgotten);
        Ok(effect)
    }
}

/// When the first entry came that the consumer or a replay has yet to read, unix milliseconds. `None`: all are read.
fn oldest_to_come_ms(context: Context<'_>, log: &Log) -> Option<i64> {
    let consumed = log.position.get().filter(|_| !log.is_drained()).map(|position| position.id);
    let state = STATE.borrow(context);
    let replays = state.background.replays.iter().filter(|r| r.is_of(&log.view)).map(|r| r.position);
    consumed.into_iter().chain(replays).map(|id| i64::try_from(id.ms).unwrap_or(i64::MAX)).min()
}

/// Executes what happens to a window state, as it was decided here or as it came from the primary.
fn execute(
    context: Context<'_>,
    key: &mut Key<'_>,
    row_name: &ServerString,
    effect: &WindowEffect<'_>,
    event_time_ms: i64,
    inputs: &[Option<&[u8]>],
) -> std::result::Result<(Fed, u64), String> {
    let decode = |layout: &[u8]| Layout::decode(layout).ok_or("the layout of a window state is damaged");
    if let StateChange::New(layout, generation) = effect.state {
        key.set_window_state(WindowState::new(decode(layout)?, generation));
    }
    let state = key.window_state().ok().flatten().ok_or("there is no window state to feed")?;
    if let StateChange::Relayout(layout) = effect.state {
        state.change_layout(decode(layout)?);
    }
    let mut fed = Fed::default();
    if effect.is_event {
        fed = state.feed(&Event { time_ms: event_time_ms, arrived_ms: effect.arrived_ms, inputs });
    }
    let forgotten = effect.seen.as_ref().map_or(0, |sighting| state.remember(sighting));
    if let Some(at_ms) = effect.expires_at_ms {
        key.set_expiry(Some(at_ms));
    }
    // Who watches or caches the row reads windows under its name.
    context.signal_modified(row_name);
    Ok((fed, forgotten))
}

/// Executes what the primary did to a window state. `fields`: the update's, by name.
pub(crate) fn execute_from_primary<'f>(
    context: Context<'_>,
    row_name: &ServerString,
    row: &RowKey<'_>,
    effect: &WindowEffect<'_>,
    event_time_ms: i64,
    fields: impl Iterator<Item = (&'f str, Option<&'f [u8]>)>,
) -> std::result::Result<(), String> {
    let mut key = Key::open(context, &key_of_row(row), Mode::Write);
    let layout = match (&effect.state, key.window_state()) {
        (StateChange::New(layout, _) | StateChange::Relayout(layout), Ok(_)) => Layout::decode(layout),
        (StateChange::Keep, Ok(state)) => state.map(|state| Arc::clone(state.layout())),
        (_, Err(OtherType)) => return Err("the key of the window state holds something else".to_owned()),
    };
    let layout = layout.ok_or("there is no window state to feed")?;
    let mut inputs: SmallVec<[Option<&[u8]>; 8]> = SmallVec::from_elem(None, layout.inputs.len());
    for (feature, field) in fields {
        if let Some(input) = layout.input(feature) {
            // A damaged AOF may say anything; what is kept must be what can be loaded again.
            inputs[input] = field.filter(|field| is_stored_form(layout.inputs[input].ty, field));
        }
    }
    execute(context, &mut key, row_name, effect, event_time_ms, &inputs).map(|_| ())
}

fn key_of_row(row: &RowKey<'_>) -> ServerString {
    ServerString::new(&window_key(row))
}

fn holds_state(context: Context<'_>, name: &ServerString) -> bool {
    matches!(Key::open(context, name, Mode::Read).window_state(), Ok(Some(_)))
}

/// Has the row window state?
pub(crate) fn are_there(context: Context<'_>, row: &RowKey<'_>) -> bool {
    holds_state(context, &key_of_row(row))
}

/// Makes a state that was put in place from elsewhere one of the present generation, which the next clearing voids. One
/// that is void stays so.
pub(crate) fn adopt(context: Context<'_>, name: &ServerString) {
    let Some(row) = row_of_window_key(name.bytes()) else { return };
    let prepared = RowKey::parse(&row).and_then(|row| STATE.borrow(context).view_of(&row));
    let Ok(prepared) = prepared else { return };
    let Some(windows) = &prepared.windows else { return };
    let is_later = matches!(
        Key::open(context, name, Mode::Read).window_state(),
        Ok(Some(state)) if state.generation() > windows.generation
    );
    if is_later {
        if let Ok(Some(state)) = Key::open(context, name, Mode::Write).window_state() {
            state.set_generation(windows.generation);
        }
    }
}

/// Deletes the window state of a row. Answers whether there was one.
pub(crate) fn delete(context: Context<'_>, row: &RowKey<'_>) -> bool {
    let name = key_of_row(row);
    let there = holds_state(context, &name);
    if there {
        Key::open(context, &name, Mode::Write).unlink();
        context.notify(raw::REDISMODULE_NOTIFY_GENERIC, c"del", &name);
    }
    there
}
