//! Sampling: what is published and served goes into the current windows of drift.

use crate::server::api::Context;
use crate::server::config;
use crate::server::state::PreparedView;
use feature_store_core::codec::DriftChange;
use feature_store_core::definition::FeatureView;
use feature_store_core::drift::current::Given;
use feature_store_core::drift::steps::Bounds;
use feature_store_core::drift::view::{is_offered, ViewDrift};
use feature_store_core::row::{Served, Status};
use std::borrow::Cow;
use std::cell::{Cell, Ref, RefCell, RefMut};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The drift state of a version of a view, and what is to be known of it on the hot path.
pub(crate) struct Samples {
    drift: Rc<RefCell<ViewDrift>>,
    rate: f64,
    samples_publishing: bool,
    samples_serving: bool,
    /// Tells it from another state of the same name.
    number: u64,
    /// Arrivals, for the draw of those that are offered. Each node draws for itself; who is drawn is replicated.
    offered: Cell<u64>,
}

/// How many states were made since the start.
static STATES_MADE: AtomicU64 = AtomicU64::new(0);

/// The bounds that are set on this node.
fn configured() -> Bounds {
    Bounds { values_max: config::DRIFT_SAMPLES.get_u64(), age_ms_max: config::DRIFT_AGE_MS_MAX.get() }
}

impl Samples {
    /// For a definition; what was known of the same version before goes on.
    pub(crate) fn of(view: &FeatureView, known: Option<&Samples>) -> Self {
        let (drift, number) = match known {
            Some(known) => {
                known.drift.borrow_mut().follow(view);
                (Rc::clone(&known.drift), known.number)
            }
            None => (Rc::new(RefCell::new(ViewDrift::new(view))), STATES_MADE.fetch_add(1, Ordering::Relaxed)),
        };
        let (samples_publishing, samples_serving) = {
            let drift = drift.borrow();
            (drift.samples_publishing(), drift.samples_serving())
        };
        Samples { drift, rate: view.sample.rate, samples_publishing, samples_serving, number, offered: Cell::new(0) }
    }

    /// The state, to look. The rule of `STATE` holds here too.
    pub(crate) fn drift(&self, _proof: Context<'_>) -> Ref<'_, ViewDrift> {
        self.drift.borrow()
    }

    /// The state, to change it.
    pub(crate) fn drift_mut(&self, _proof: Context<'_>) -> RefMut<'_, ViewDrift> {
        self.drift.borrow_mut()
    }

    /// Puts another state in place, for what was read from a file.
    pub(crate) fn install(&self, view: &FeatureView, mut drift: ViewDrift) {
        drift.follow(view);
        *self.drift.borrow_mut() = drift;
    }

    /// Puts what this node served itself into the state of another.
    pub(crate) fn keep_own_serving(arrived: &mut ViewDrift, view: &FeatureView, own: Option<&PreparedView>) {
        match own {
            Some(own) => arrived.keep_own_serving(view, Some((&own.samples.drift.borrow(), &own.view))),
            None => arrived.keep_own_serving(view, None),
        }
    }

    /// Tells a feature's baseline and window from others that stand in their place later. `None`: there is no such
    /// feature.
    pub(crate) fn identity(&self, context: Context<'_>, feature: usize) -> Option<(u64, u32)> {
        self.drift(context).feature(feature).map(|state| (self.number, state.generation))
    }

    fn is_offered(&self) -> bool {
        let number = self.offered.get();
        self.offered.set(number.wrapping_add(1));
        is_offered(number, self.rate)
    }

    /// Does the update that comes now belong to the sample?
    pub(crate) fn wants_update(&self) -> bool {
        self.samples_publishing && self.is_offered()
    }

    /// On the primary, before an update is taken in: the bounds, if they are others now. Copies have to be told.
    pub(crate) fn changed_bounds(&self) -> Option<Bounds> {
        let bounds = configured();
        let mut drift = self.drift.borrow_mut();
        (drift.published_bounds() != bounds).then(|| {
            drift.rebound_published(bounds);
            bounds
        })
    }

    /// Takes in an update.
    pub(crate) fn publish<'u>(&self, fields: impl Iterator<Item = (usize, Option<&'u [u8]>)>, now_ms: i64) {
        self.drift.borrow_mut().publish(fields, now_ms);
    }

    /// Is this feature sampled when rows are given to readers?
    pub(crate) fn takes_when_served(&self, feature: usize) -> bool {
        self.samples_serving && self.drift.borrow().samples_when_served(feature)
    }

    /// Takes in a row that is given to a reader, where the view wants that.
    pub(crate) fn serve<'r>(&self, features: &[usize], now_ms: i64, served: impl Fn(usize) -> Cow<'r, Served<'r>>) {
        if !self.samples_serving || !self.is_offered() {
            return;
        }
        let mut drift = self.drift.borrow_mut();
        let bounds = configured();
        if drift.served_bounds() != bounds {
            drift.rebound_served(bounds);
        }
        let arrival = drift.next_served(now_ms);
        for (place, feature) in features.iter().enumerate() {
            let served = served(place);
            let value = served.value.as_ref().filter(|_| served.status == Status::Present);
            drift.serve(*feature, arrival, value.map_or(Given::Absent, Given::Served));
        }
    }
}

/// Changes what drift is found by, on any copy.
pub(crate) fn change(context: Context<'_>, prepared: &PreparedView, feature: usize, change: DriftChange) {
    let mut drift = prepared.samples.drift_mut(context);
    match change {
        DriftChange::ClearCurrent => drift.clear_current(&prepared.view, feature),
        DriftChange::Baseline(baseline) => drift.set_baseline(feature, baseline),
    }
}
