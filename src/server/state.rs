//! The one static: everything that the module holds in memory.

use crate::server::api::{Context, ServerString};
use crate::server::background::Background;
use crate::server::columns::{Columns, FromCache};
use crate::server::logs::Log;
use crate::server::persistence::Arrived;
use crate::server::samples::Samples;
use crate::server::windows::PreparedWindows;
use feature_store_core::definition::{FeatureView, Storage};
use feature_store_core::keys::{
    checked_entity_id, dead_letter_key, row_prefix, stream_key, RowKey, FEATURE_VIEW, TIMES, UPDATED_AT,
};
use feature_store_core::log_entry::{APPLIED, ENTITY_ID, EVENT_ID, FEATURES, FEATURE_VIEW as ENTRY_VIEW, TIMESTAMP};
use feature_store_core::packed::{Packing, Steps};
use feature_store_core::registry::Registry;
use feature_store_core::service::{Format, Part, Plan, Service};
use feature_store_core::{Code, Error, Result};
use lazy_static::lazy_static;
use rustc_hash::FxHashMap;
use std::cell::{Ref, RefCell, RefMut};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

/// A value that only the main thread touches.
pub(crate) struct MainThread<T>(RefCell<T>);

// SAFETY: every access asks for a `Context`, which exists only on the main thread (or under its lock) and is not Send.
unsafe impl<T> Sync for MainThread<T> {}
// SAFETY: as above; the value is made by whoever comes first and never moves.
unsafe impl<T> Send for MainThread<T> {}

impl<T> MainThread<T> {
    pub(crate) fn new(value: T) -> Self {
        MainThread(RefCell::new(value))
    }

    /// To look. Hold it for a statement, never across a call that can fire a keyspace event.
    pub(crate) fn borrow(&self, _proof: Context<'_>) -> Ref<'_, T> {
        self.0.borrow()
    }

    /// To change. The same rule.
    pub(crate) fn borrow_mut(&self, _proof: Context<'_>) -> RefMut<'_, T> {
        self.0.borrow_mut()
    }
}

lazy_static! {
    /// All state of the module.
    pub(crate) static ref STATE: MainThread<State> = MainThread::new(State::default());
}

/// All state of the module.
#[derive(Default)]
pub(crate) struct State {
    /// The definitions, and what must outlive a restart.
    pub(crate) registry: Registry,
    /// What a full resync brings, until the load has succeeded.
    pub(crate) arriving: Option<Arrived>,
    /// A load from the primary is under way.
    pub(crate) resyncing: bool,
    /// The registry prepared for the hot path.
    prepared: FxHashMap<String, Prepared>,
    /// Counts changes of what is prepared: services that were planned before are planned again.
    generation: u64,
    /// The view of the row that was asked for last: mostly it is asked for again.
    last_view: Option<Rc<PreparedView>>,
    services: FxHashMap<String, Rc<PreparedService>>,
    /// Consumers, replays, deletions.
    pub(crate) background: Background,
    /// Figures since the start.
    pub(crate) counters: Counters,
}

/// Figures of all views since the start.
#[derive(Default)]
pub(crate) struct Counters {
    /// Rows given to readers.
    pub(crate) rows_served: u64,
    /// Window states that an eviction took.
    pub(crate) evicted_windows: u64,
}

struct Prepared {
    versions: Vec<(u32, Rc<PreparedView>)>,
    log: Rc<Log>,
}

/// A version of a view with its names as strings of the server.
pub(crate) struct PreparedView {
    /// The definition.
    pub(crate) view: Arc<FeatureView>,
    /// What all keys of its rows begin with.
    pub(crate) row_prefix: String,
    /// The features' names, in the schema's order.
    pub(crate) names: Vec<ServerString>,
    /// The log that all versions share.
    pub(crate) log: Rc<Log>,
    /// Its windows and the memory of events, where it has any.
    pub(crate) windows: Option<PreparedWindows>,
    /// How its rows are packed; `None`: they are hashes.
    pub(crate) packing: Option<Packing>,
    /// Its numbers in the column cache.
    pub(crate) columns: Rc<Columns>,
    /// Its drift state.
    pub(crate) samples: Samples,
    /// The last request for features by a list of names: a model asks for the same again and again.
    last_request: RefCell<Option<Rc<Request>>>,
}

/// How features of a view are read as the columns of a tensor.
pub(crate) struct NumberPlan {
    /// The features, by index.
    pub(crate) features: Vec<usize>,
    /// For each where its columns begin in a row, and how many they are.
    pub(crate) columns: Vec<(usize, usize)>,
    /// How many columns a row has.
    pub(crate) width: usize,
    /// Straight from packed rows. `None`: rows are hashes, or a window is among the features.
    pub(crate) steps: Option<Steps>,
}

impl NumberPlan {
    pub(crate) fn new(view: &PreparedView, features: &[usize], columns: Vec<(usize, usize)>, width: usize) -> Self {
        let steps = view.packing.as_ref().map(|packing| Steps::new(&view.view, packing, features, &columns));
        let steps = steps.filter(|steps| steps.others().is_empty());
        NumberPlan { features: features.to_vec(), columns, width, steps }
    }
}

/// A service with the views that it reads.
pub(crate) struct PreparedService {
    /// As it was set.
    pub(crate) service: Arc<Service>,
    /// How it is read.
    pub(crate) plan: Plan,
    /// The view of each part of the plan.
    pub(crate) views: Vec<Rc<PreparedView>>,
    /// Of a tensor: how each part is read, and how it comes from the column cache.
    pub(crate) numbers: Vec<(NumberPlan, Option<FromCache>)>,
    generation: u64,
}

/// A list of features, resolved.
pub(crate) struct Request {
    names: Vec<u8>,
    /// The features, by index.
    pub(crate) features: Vec<usize>,
    /// How they are read as numbers. `None`: one has none.
    pub(crate) numbers: Option<NumberPlan>,
}

impl PreparedView {
    /// Resolves a list of features, comma-separated or `*`.
    pub(crate) fn request(&self, names: &[u8]) -> Result<Rc<Request>> {
        if let Some(last) = self.last_request.borrow().as_ref().filter(|last| last.names == names) {
            return Ok(Rc::clone(last));
        }
        let features = self.view.served_positions(names)?;
        let mut width = 0;
        let placed = |count: usize| {
            width += count;
            (width - count, count)
        };
        let widths = self.view.tensor_columns(&features).ok();
        let columns: Option<Vec<_>> = widths.map(|widths| widths.into_iter().map(placed).collect());
        let numbers = columns.map(|columns| NumberPlan::new(self, &features, columns, width));
        let request = Rc::new(Request { names: names.to_vec(), features, numbers });
        *self.last_request.borrow_mut() = Some(Rc::clone(&request));
        Ok(request)
    }
}

/// Words that rows and log entries are made of.
pub(crate) struct Words {
    pub(crate) updated_at: ServerString,
    pub(crate) feature_view: ServerString,
    pub(crate) times: ServerString,
    pub(crate) entity_id: ServerString,
    pub(crate) features: ServerString,
    pub(crate) timestamp: ServerString,
    pub(crate) entry_view: ServerString,
    pub(crate) applied: ServerString,
    pub(crate) event_id: ServerString,
    pub(crate) one: ServerString,
}

lazy_static! {
    static ref WORDS: MainThread<Rc<Words>> = MainThread::new(Rc::new(Words {
        updated_at: ServerString::new(UPDATED_AT.as_bytes()),
        feature_view: ServerString::new(FEATURE_VIEW.as_bytes()),
        times: ServerString::new(TIMES.as_bytes()),
        entity_id: ServerString::new(ENTITY_ID.as_bytes()),
        features: ServerString::new(FEATURES.as_bytes()),
        timestamp: ServerString::new(TIMESTAMP.as_bytes()),
        entry_view: ServerString::new(ENTRY_VIEW.as_bytes()),
        applied: ServerString::new(APPLIED.as_bytes()),
        event_id: ServerString::new(EVENT_ID.as_bytes()),
        one: ServerString::new(b"1"),
    }));
}

/// The words, shared.
pub(crate) fn words(context: Context<'_>) -> Rc<Words> {
    Rc::clone(&WORDS.borrow(context))
}

impl State {
    /// Prepares all views anew. Logs keep what they know.
    pub(crate) fn prepare_all(&mut self) {
        let names: Vec<String> = self.registry.views().map(|(name, _)| name.clone()).collect();
        self.prepared.retain(|name, _| self.registry.view(name.as_bytes()).is_ok());
        self.last_view = None;
        self.forget_plans();
        names.iter().for_each(|name| self.prepare(name));
    }

    /// Prepares a view for the hot path after the registry changed. Its log keeps what it knows.
    pub(crate) fn prepare(&mut self, name: &str) {
        // Plans keep what they read: that of dropped views would stay.
        self.forget_plans();
        self.last_view = None;
        let Ok(view) = self.registry.view(name.as_bytes()) else {
            self.prepared.remove(name);
            return;
        };
        let (known_versions, known_log) =
            self.prepared.remove(name).map_or((Vec::new(), None), |known| (known.versions, Some(known.log)));
        let is_new = known_log.is_none();
        let log = known_log.unwrap_or_else(|| {
            let (stream, dead_letters) = (stream_key(name), dead_letter_key(name));
            Rc::new(Log::new(name, ServerString::new(stream.as_bytes()), ServerString::new(dead_letters.as_bytes())))
        });
        log.redefine(view, is_new);
        let versions = view
            .versions
            .iter()
            .map(|(version, definition)| {
                let known = known_versions.iter().find(|(v, _)| v == version).map(|(_, prepared)| prepared);
                let prepared = PreparedView {
                    view: Arc::clone(definition),
                    row_prefix: row_prefix(name, *version),
                    names: definition.features().iter().map(|f| ServerString::new(f.name.as_bytes())).collect(),
                    log: Rc::clone(&log),
                    windows: PreparedWindows::of(
                        definition,
                        view.window_generations.get(version).copied().unwrap_or_default(),
                    ),
                    packing: (definition.storage == Storage::Packed)
                        .then(|| Packing::of(definition).expect("a definition whose rows are too large was refused")),
                    columns: Columns::of(definition, known.map(|known| &known.columns)),
                    samples: Samples::of(definition, known.map(|known| &known.samples)),
                    last_request: RefCell::new(None),
                };
                (*version, Rc::new(prepared))
            })
            .collect();
        self.prepared.insert(name.to_owned(), Prepared { versions, log });
    }

    /// Makes all window states of a version void that are of an earlier generation.
    pub(crate) fn clear_windows(&mut self, view: &str, version: u32, generation: u32) {
        if let Ok(registered) = self.registry.view_mut(view.as_bytes()) {
            registered.window_generations.insert(version, generation);
            self.prepare(view);
        }
    }

    /// The view that a row's key names, and the entity's id in it.
    pub(crate) fn row<'k>(&mut self, key: &'k [u8]) -> Result<(&'k [u8], Rc<PreparedView>)> {
        if let Some(last) = &self.last_view {
            if let Some(id) = key.strip_prefix(last.row_prefix.as_bytes()) {
                return Ok((checked_entity_id(id)?, Rc::clone(last)));
            }
        }
        let key = RowKey::parse(key)?;
        let prepared = self.view_of(&key)?;
        self.last_view = Some(Rc::clone(&prepared));
        Ok((key.entity_id, prepared))
    }

    /// The view that a row's key names.
    pub(crate) fn view_of(&self, key: &RowKey<'_>) -> Result<Rc<PreparedView>> {
        let prepared = self.prepared.get(key.view);
        match prepared.and_then(|p| p.versions.iter().find(|(version, _)| *version == key.version)) {
            Some((_, view)) => Ok(Rc::clone(view)),
            None if prepared.is_some() => Err(Error::new(
                Code::NoView,
                format!("version {} of view '{}' is not registered", key.version, key.view),
            )),
            None => Err(Error::new(Code::NoView, format!("view '{}' is not registered", key.view))),
        }
    }

    /// A service, planned by the definitions as they are now.
    pub(crate) fn service(&mut self, name: &[u8]) -> Result<Rc<PreparedService>> {
        let known = std::str::from_utf8(name).ok().and_then(|name| self.services.get(name));
        if let Some(known) = known.filter(|known| known.generation == self.generation) {
            return Ok(Rc::clone(known));
        }
        let service = Arc::clone(self.registry.service(name)?);
        let plan = service.plan(&self.registry)?;
        let prepared_version = |part: &Part| self.prepared_version(&part.view.name, part.view.version);
        let views = plan.parts.iter().map(|part| prepared_version(part).expect("every registered view is prepared"));
        let views: Vec<Rc<PreparedView>> = views.collect();
        let is_tensor = service.format == Format::Tensor;
        let numbers = plan.parts.iter().zip(&views).filter(|_| is_tensor);
        let numbers = numbers
            .map(|(part, view)| {
                let plan = NumberPlan::new(view, &part.features, part.columns.clone(), plan.width());
                let from_cache = view.columns.source_of(view, &plan);
                (plan, from_cache)
            })
            .collect();
        let prepared = Rc::new(PreparedService { generation: self.generation, views, numbers, plan, service });
        self.services.insert(prepared.service.name.clone(), Rc::clone(&prepared));
        Ok(prepared)
    }

    /// Tells the definitions and services as they are now from others.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// What services read as tensors of each version of a view: stored features, rising. What is sampled where it is
    /// served has to be read.
    pub(crate) fn read_as_tensors(&self) -> Vec<(Rc<PreparedView>, Vec<usize>)> {
        let mut read: FxHashMap<(String, u32), BTreeSet<usize>> = FxHashMap::default();
        let tensors = self.registry.services().filter(|service| service.format == Format::Tensor);
        for part in tensors.filter_map(|service| service.plan(&self.registry).ok()).flat_map(|plan| plan.parts) {
            let stored = part.features.iter().filter(|feature| part.view.features()[**feature].is_stored());
            read.entry((part.view.name.clone(), part.view.version)).or_default().extend(stored);
        }
        let mut features_of = |view: &PreparedView| {
            let features = read.remove(&(view.view.name.clone(), view.view.version)).unwrap_or_default();
            features.into_iter().filter(|feature| !view.samples.takes_when_served(*feature)).collect()
        };
        self.all_versions().into_iter().map(|view| (Rc::clone(&view), features_of(&view))).collect()
    }

    /// Forgets what was planned, after services changed.
    pub(crate) fn forget_plans(&mut self) {
        self.generation += 1;
        self.services.clear();
    }

    /// The log of a view that a command names.
    pub(crate) fn require_log(&self, view: &[u8]) -> Result<Rc<Log>> {
        let name = &self.registry.version(view, None)?.name;
        Ok(self.log_of(name).expect("every registered view is prepared"))
    }

    /// The log of a view, if it is registered.
    pub(crate) fn log_of(&self, view: &str) -> Option<Rc<Log>> {
        self.prepared.get(view).map(|p| Rc::clone(&p.log))
    }

    /// The prepared form of a version.
    pub(crate) fn prepared_version(&self, view: &str, version: u32) -> Option<Rc<PreparedView>> {
        let prepared = self.prepared.get(view)?;
        prepared.versions.iter().find(|(v, _)| *v == version).map(|(_, view)| Rc::clone(view))
    }

    /// All versions of all views.
    pub(crate) fn all_versions(&self) -> Vec<Rc<PreparedView>> {
        self.prepared.values().flat_map(|p| p.versions.iter().map(|(_, view)| Rc::clone(view))).collect()
    }

    /// Forgets what was prepared of versions; logs keep what they know. Answers the versions.
    pub(crate) fn take_versions(&mut self) -> Vec<Rc<PreparedView>> {
        self.last_view = None;
        self.prepared.values_mut().flat_map(|p| std::mem::take(&mut p.versions)).map(|(_, view)| view).collect()
    }

    /// All logs.
    pub(crate) fn logs(&self) -> Vec<Rc<Log>> {
        self.prepared.values().map(|p| Rc::clone(&p.log)).collect()
    }
}
