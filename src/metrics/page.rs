//! The page that counters are shown on, in the two text formats that Prometheus reads.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, MetricEncoder,
        NoLabelSet, prometheus_text, text,
    },
    metrics::MetricType,
    registry::Registry,
};

use super::Seen;

/// The names and values of labels.
pub type Labels<'a, const N: usize> = [(&'static str, &'a str); N];

/// How a page is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text 0.0.4, which everybody reads.
    Prometheus,
    /// OpenMetrics text 1.0.0, for who asks for it.
    OpenMetrics,
}

impl Format {
    /// What the reader of a page would like best, by its `Accept`.
    #[must_use]
    pub fn accepted(accept: &str) -> Self {
        match accept.contains("application/openmetrics-text") {
            true => Self::OpenMetrics,
            false => Self::Prometheus,
        }
    }

    /// Its `Content-Type`.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// What writes itself on a page.
pub trait Sheet: fmt::Debug + Send + Sync + 'static {
    /// Writes all there is.
    ///
    /// # Errors
    /// Those of the page.
    fn write(&self, page: &mut Page<'_>) -> fmt::Result;
}

/// A page with all that a sheet has.
///
/// # Errors
/// None, but those of the sheet.
pub fn write(sheet: impl Sheet, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Whole(sheet)));
    let mut page = String::new();
    match format {
        Format::Prometheus => prometheus_text::encode(&mut page, &registry)?,
        Format::OpenMetrics => text::encode(&mut page, &registry)?,
    }
    Ok(page)
}

#[derive(Debug)]
struct Whole<S>(S);

impl<S: Sheet> Collector for Whole<S> {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.0.write(&mut Page(encoder))
    }
}

/// A page that is being written: one metric after the other, each with all of its samples. A metric
/// is named although it has none.
#[derive(Debug)]
pub struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    /// A counter; its name goes without `_total`.
    ///
    /// # Errors
    /// Those of the page.
    pub fn counter<L: EncodeLabelSet, V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        let each = |mut sample: MetricEncoder<'_>, value: V| {
            sample.encode_counter::<NoLabelSet, _, f64>(&value, None)
        };
        self.metric(name, help, MetricType::Counter, samples, each)
    }

    /// A number that goes up and down.
    ///
    /// # Errors
    /// Those of the page.
    pub fn gauge<L: EncodeLabelSet, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        let each = |mut sample: MetricEncoder<'_>, value: V| sample.encode_gauge(&value);
        self.metric(name, help, MetricType::Gauge, samples, each)
    }

    /// Labels alone; its name goes without `_info`.
    ///
    /// # Errors
    /// Those of the page.
    pub fn info<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = L>,
    ) -> fmt::Result {
        let mut metric = self
            .0
            .encode_descriptor(name, help, None, MetricType::Info)?;
        samples
            .into_iter()
            .try_for_each(|labels| metric.encode_info(&labels))
    }

    /// Durations.
    ///
    /// # Errors
    /// Those of the page.
    pub fn histogram<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (L, Seen)>,
    ) -> fmt::Result {
        let each = |mut sample: MetricEncoder<'_>, seen: Seen| {
            let (sum, count) = (seen.sum, seen.count());
            sample.encode_histogram::<NoLabelSet>(sum, count, &seen.buckets, None)
        };
        self.metric(name, help, MetricType::Histogram, samples, each)
    }

    fn metric<L: EncodeLabelSet, T>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        samples: impl IntoIterator<Item = (L, T)>,
        each: impl Fn(MetricEncoder<'_>, T) -> fmt::Result,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, kind)?;
        samples
            .into_iter()
            .try_for_each(|(labels, value)| each(metric.encode_family(&labels)?, value))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::{Histogram, Waits};

    #[derive(Debug)]
    struct One;

    impl Sheet for One {
        fn write(&self, page: &mut Page<'_>) -> fmt::Result {
            let labels: Labels<'_, 1> = [("slot", "a\"b")];
            page.counter("a", "Of a.", [(labels, 3_u64)])?;
            page.gauge("b", "Of b.", [([("x", "y"); 0], 0.5)])?;
            page.info("c", "Of c.", [[("x", "y")]])?;
            page.gauge("none", "Of none.", Vec::<(Labels<'_, 1>, f64)>::new())?;
            let histogram = Histogram::<Waits>::default();
            histogram.observe(Duration::from_secs(20));
            page.histogram("d_seconds", "Of d.", [([("x", "y")], histogram.seen())])
        }
    }

    #[test]
    fn both_formats_say_the_same() {
        let plain = write(One, Format::Prometheus).unwrap();
        for line in [
            "# HELP a_total Of a.",
            "# TYPE a_total counter",
            "a_total{slot=\"a\\\"b\"} 3",
            "b 0.5",
            "c_info{x=\"y\"} 1",
            "# TYPE none gauge",
            "d_seconds_bucket{x=\"y\",le=\"10\"} 0",
            "d_seconds_bucket{x=\"y\",le=\"+Inf\"} 1",
            "d_seconds_count{x=\"y\"} 1",
        ] {
            assert!(plain.lines().any(|l| l == line), "no {line} in\n{plain}");
        }
        let open = write(One, Format::OpenMetrics).unwrap();
        assert!(
            open.contains("# TYPE a counter\na_total{slot=\"a\\\"b\"} 3\n"),
            "{open}"
        );
        assert!(open.ends_with("# EOF\n"), "{open}");
    }

    #[test]
    fn the_format_is_the_readers_choice() {
        for (accept, format) in [
            ("", Format::Prometheus),
            ("*/*", Format::Prometheus),
            ("text/plain;version=0.0.4;q=0.5", Format::Prometheus),
            (
                "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;q=0.5",
                Format::OpenMetrics,
            ),
        ] {
            assert_eq!(Format::accepted(accept), format, "{accept}");
        }
    }
}
