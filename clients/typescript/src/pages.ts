/** ageOf returns the age of the view that a list or count was read from, in milliseconds. */
export function ageOf(headers: Headers): number {
  return Number(headers.get("X-View-Age")) * 1000;
}

/** pages iterates over the items of all pages. page gets the cursor that the previous page returned. */
export async function* pages<T>(page: (cursor: string | undefined) => Promise<[items: T[], next: string | undefined]>): AsyncGenerator<T> {
  for (let cursor: string | undefined; ; ) {
    const [items, next] = await page(cursor);
    yield* items;
    if (!next) {
      return;
    }
    cursor = next;
  }
}
