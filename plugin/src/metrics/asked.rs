//! Those who are asked again and again, and may not answer: what each told last, and when.
//!
//! Nobody who reads waits longer than the deadline, and nobody is asked a second time while a first
//! question is open: one that hangs costs one task, however often it is read.

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, join_all};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What somebody told.
#[derive(Debug, Clone)]
pub struct Told<T> {
    /// That.
    pub value: T,
    /// How long ago.
    pub age: Duration,
    /// It is the answer to this question, not to an earlier one.
    pub fresh: bool,
}

struct Place<T> {
    told: Option<(T, Instant)>,
    open: Option<Shared<BoxFuture<'static, ()>>>,
}

/// All who are asked, by key. Cheap to clone.
pub struct Asked<K, T> {
    places: Arc<Mutex<BTreeMap<K, Place<T>>>>,
}

impl<K, T> Clone for Asked<K, T> {
    fn clone(&self) -> Self {
        Asked { places: Arc::clone(&self.places) }
    }
}

impl<K, T> Default for Asked<K, T> {
    fn default() -> Self {
        Asked { places: Arc::default() }
    }
}

impl<K: Ord + Clone + Send + 'static, T: Clone + Send + 'static> Asked<K, T> {
    /// Asks all of these, and forgets all others. A question that comes to nothing (`None`) leaves
    /// what was told before. Those who have never told are missing in the answer.
    pub async fn ask(
        &self,
        questions: Vec<(K, BoxFuture<'static, Option<T>>)>,
        deadline: Duration,
    ) -> BTreeMap<K, Told<T>> {
        let asked_at = Instant::now();
        let open = self.open(questions);
        // At the deadline what was told before has to do.
        let _ = tokio::time::timeout(deadline, join_all(open)).await;
        let places = self.places();
        let told = places.iter().filter_map(|(key, place)| {
            let (value, at) = place.told.clone()?;
            Some((key.clone(), Told { value, age: at.elapsed(), fresh: at >= asked_at }))
        });
        told.collect()
    }

    fn open(
        &self,
        questions: Vec<(K, BoxFuture<'static, Option<T>>)>,
    ) -> Vec<Shared<BoxFuture<'static, ()>>> {
        let mut places = self.places();
        let mut former = std::mem::take(&mut *places);
        let ask = |(key, question): (K, BoxFuture<'static, Option<T>>)| {
            let place = former.remove(&key).unwrap_or(Place { told: None, open: None });
            let open = match place.open {
                Some(open) if open.peek().is_none() => open,
                _ => self.begin(key.clone(), question),
            };
            places.insert(key, Place { told: place.told, open: Some(open.clone()) });
            open
        };
        questions.into_iter().map(ask).collect()
    }

    /// In a task of its own: who reads may go.
    fn begin(
        &self,
        key: K,
        question: BoxFuture<'static, Option<T>>,
    ) -> Shared<BoxFuture<'static, ()>> {
        let all = self.clone();
        let asking = tokio::spawn(async move {
            let told = question.await;
            if let (Some(told), Some(place)) = (told, all.places().get_mut(&key)) {
                place.told = Some((told, Instant::now()));
            }
        });
        asking.map(drop).boxed().shared()
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<K, Place<T>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::Notify;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn who_does_not_answer_holds_nobody_up_and_is_asked_once() {
        let asked = Asked::default();
        let (go, times) = (Arc::new(Notify::new()), Arc::new(AtomicU32::new(0)));
        let questions = |number: u32| {
            let (go, times) = (Arc::clone(&go), Arc::clone(&times));
            let slow = async move {
                times.fetch_add(1, Ordering::Relaxed);
                go.notified().await;
                Some(number)
            };
            vec![("quick", async move { Some(number) }.boxed()), ("slow", slow.boxed())]
        };
        let told = asked.ask(questions(1), SHORT).await;
        assert_eq!(told["quick"].value, 1);
        assert!(told["quick"].fresh && !told.contains_key("slow"));
        let told = asked.ask(questions(2), SHORT).await;
        assert_eq!((told["quick"].value, told.len()), (2, 1));
        assert_eq!(times.load(Ordering::Relaxed), 1, "one question is open");

        go.notify_one();
        let told = asked.ask(questions(3), LONG).await;
        assert_eq!(told["slow"].value, 1, "the first question was answered");
        let told = asked.ask(questions(4), SHORT).await;
        assert!(!told["slow"].fresh && told["quick"].fresh);
        assert_eq!((told["slow"].value, told["quick"].value), (1, 4));
    }

    #[tokio::test]
    async fn who_is_not_asked_any_more_is_forgotten() {
        let asked = Asked::default();
        let one = |key| vec![(key, async { Some(()) }.boxed())];
        asked.ask(one("a"), LONG).await;
        let told = asked.ask(one("b"), LONG).await;
        assert_eq!(told.keys().collect::<Vec<_>>(), [&"b"]);
        let nothing = vec![("b", async { None }.boxed())];
        assert!(!asked.ask(nothing, LONG).await["b"].fresh);
    }
}
