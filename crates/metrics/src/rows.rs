//! Rows of metrics, and their registration.

use prometheus_client::registry::{Metric, Registry};

/// Registers a metric and returns its handle. The registry adds the full stop at the end of the
/// help text.
pub fn registered<M: Metric + Clone>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    metric: M,
) -> M {
    registry.register(name, help.trim().trim_end_matches('.'), metric.clone());
    metric
}

/// Declares a struct of metrics: one row for each, `/// help` and `name: kind`.
///
/// | kind | field | what it is |
/// |---|---|---|
/// | `counter` | `Counter` | events since the start; the name gets the ending `_total` |
/// | `gauge` | `Gauge` | a value now |
/// | `latency` | `Histogram` | durations in seconds, 50 µs to 10 s |
/// | `count` | `Histogram` | numbers of things, 1 to 4,096 |
/// | `bytes` | `Histogram` | sizes in bytes, 256 B to 4 MiB |
///
/// ```
/// quorate_metrics::metrics! {
///     /// Metrics of the kitchen.
///     pub struct Kitchen {
///         /// Meals that were served.
///         meals: counter,
///         /// Time from an order to its meal.
///         meal_seconds: latency,
///     }
/// }
/// let mut registry = quorate_metrics::prometheus_client::registry::Registry::default();
/// let kitchen = Kitchen::register(&mut registry);
/// kitchen.meals.inc();
/// let mut text = String::new();
/// quorate_metrics::prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
/// assert!(text.contains("# HELP meals Meals that were served.\n"));
/// assert!(text.contains("meals_total 1\n"));
/// ```
#[macro_export]
macro_rules! metrics {
    (
        $(#[$about:meta])*
        pub struct $name:ident { $($(#[doc = $help:literal])+ $row:ident: $kind:ident,)+ }
    ) => {
        $(#[$about])*
        ///
        /// The fields are handles: cheap to clone and to count on, without a look-up.
        #[derive(Clone, Debug)]
        pub struct $name { $($(#[doc = $help])+ pub $row: $crate::metric_type!($kind),)+ }

        impl $name {
            /// Registers all metrics, at zero, in this registry.
            #[must_use]
            pub fn register(
                registry: &mut $crate::prometheus_client::registry::Registry,
            ) -> Self {
                Self {
                    $($row: $crate::registered(
                        registry,
                        stringify!($row),
                        concat!($($help),+),
                        $crate::metric_new!($kind),
                    ),)+
                }
            }
        }
    };
}

/// The type of a kind of metric.
#[doc(hidden)]
#[macro_export]
macro_rules! metric_type {
    (counter) => {
        $crate::prometheus_client::metrics::counter::Counter
    };
    (gauge) => {
        $crate::prometheus_client::metrics::gauge::Gauge
    };
    (latency) => {
        $crate::Histogram
    };
    (count) => {
        $crate::Histogram
    };
    (bytes) => {
        $crate::Histogram
    };
}

/// A metric of a kind, at zero.
#[doc(hidden)]
#[macro_export]
macro_rules! metric_new {
    (counter) => {
        $crate::prometheus_client::metrics::counter::Counter::default()
    };
    (gauge) => {
        $crate::prometheus_client::metrics::gauge::Gauge::default()
    };
    (latency) => {
        $crate::Histogram::latency()
    };
    (count) => {
        $crate::Histogram::count()
    };
    (bytes) => {
        $crate::Histogram::bytes()
    };
}
