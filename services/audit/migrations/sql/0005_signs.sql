-- Chinese and Japanese have no spaces between words, Korean has endings on them: PostgreSQL's parser takes a whole clause
-- for one word, and nobody finds it by a part. Runs of these signs are therefore indexed as their pairs, each sign with the next
-- one and the last one alone, and a run that is looked for is there where all its pairs are. In NFKC, so that half-width
-- kana and taken-apart Hangul are what they look like.

CREATE FUNCTION goose.sign_pattern() RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT '[\u1100-\u11ff\u3005-\u3007\u3031-\u3035\u3040-\u30ff\u3131-\u318e\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff'
        || '\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uff9f\uffa0-\uffdc\U00020000-\U0003ffff]+'
$$;
COMMENT ON FUNCTION goose.sign_pattern() IS
    'Matches a run of Han, Hiragana, Katakana or Hangul.';

CREATE FUNCTION goose.sign_runs(content text) RETURNS text[] LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT array_agg(DISTINCT found[1]) FROM regexp_matches(content, goose.sign_pattern(), 'g') AS found
$$;
COMMENT ON FUNCTION goose.sign_runs(text) IS 'Such runs of a text, each once; null: it has none.';

CREATE FUNCTION goose.sign_pairs(run text) RETURNS text[] LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT array_agg(DISTINCT pair) FROM (
        SELECT sign || coalesce(lead(sign) OVER (ORDER BY place), '') AS pair
        FROM unnest(string_to_array(normalize(run, NFKC), NULL)) WITH ORDINALITY AS s(sign, place)
    ) p
$$;
COMMENT ON FUNCTION goose.sign_pairs(text) IS 'Each sign of a run with the next one, the last one alone.';

CREATE FUNCTION goose.words_of(content text) RETURNS tsvector LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT to_tsvector('goose.words', regexp_replace(content, goose.sign_pattern(), ' ', 'g')) || array_to_tsvector(
        coalesce((SELECT array_agg(DISTINCT pair)
                  FROM unnest(goose.sign_runs(content)) AS run, unnest(goose.sign_pairs(run)) AS pair), '{}'))
$$;
COMMENT ON FUNCTION goose.words_of(text) IS 'The words of a text, and the pairs of its signs.';

CREATE OR REPLACE FUNCTION goose.message_words(user_id text, content text) RETURNS tsvector
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
BEGIN
    RETURN goose.words_of(content) || array_to_tsvector(ARRAY[goose.user_word(user_id)]);
EXCEPTION WHEN program_limit_exceeded THEN
    -- More words than a tsvector holds (1 MiB): the first ones are found.
    RETURN goose.words_of(left(content, 32768)) || array_to_tsvector(ARRAY[goose.user_word(user_id)]);
END
$$;

CREATE FUNCTION goose.sign_query(run text) RETURNS tsquery LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    -- One sign alone begins a pair, or ends a run.
    SELECT CASE WHEN length(normalize(run, NFKC)) = 1 THEN quote_literal(normalize(run, NFKC)) || ':*'
        ELSE (SELECT string_agg(quote_literal(pair), ' & ') FROM unnest(goose.sign_pairs(run)) AS pair
              WHERE length(pair) > 1) END::tsquery
$$;
COMMENT ON FUNCTION goose.sign_query(text) IS 'Asks for a run of signs.';

CREATE FUNCTION goose.asked_words(query text) RETURNS tsquery LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    runs text[] := ARRAY(SELECT run FROM unnest(goose.sign_runs(query)) AS run ORDER BY length(run) DESC);
    run text;
    plain text := query;
    asked tsquery;
BEGIN
    -- A word stands for each run while quotes, "or" and - are read. It is a phrase of its own, amid quotes too, since
    -- pairs have no place in the text.
    FOREACH run IN ARRAY runs LOOP
        plain := replace(plain, run, '"q' || md5(run) || '"');
    END LOOP;
    asked := websearch_to_tsquery('goose.words', plain);
    FOREACH run IN ARRAY runs LOOP
        asked := ts_rewrite(asked, ('q' || md5(run))::tsquery, goose.sign_query(run));
    END LOOP;
    RETURN asked;
END
$$;
COMMENT ON FUNCTION goose.asked_words(text) IS 'Reads what somebody looks for.';

CREATE FUNCTION goose.marked_signs(content text, runs text[]) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN place IS NOT NULL THEN
        CASE WHEN place > 40 THEN '… ' ELSE '' END
        || regexp_replace(goose.escape_html(substr(content, greatest(place - 39, 1), 120)),
                          '(' || array_to_string(runs, '|') || ')', '<b>\1</b>', 'g')
        || CASE WHEN length(content) > greatest(place - 39, 1) + 119 THEN ' …' ELSE '' END
    END
    FROM (SELECT min(nullif(strpos(content, run), 0)) AS place FROM unnest(runs) AS run) AS first
$$;
COMMENT ON FUNCTION goose.marked_signs(text, text[]) IS
    'A text around the first of some runs of signs, escaped for HTML, the runs in <b>; null: none is there as it is.';

CREATE OR REPLACE FUNCTION goose.search_messages(request jsonb) RETURNS text LANGUAGE plpgsql STABLE
SET plan_cache_mode = force_custom_plan SET timezone = 'UTC' AS $$
DECLARE
    owner text := request ->> 'user_id';
    wanted integer := (request ->> 'limit')::integer;
    runs text[] := goose.sign_runs(request ->> 'query');
    asked tsquery := goose.asked_words(request ->> 'query');
    owned tsquery := asked && quote_literal(goose.user_word(owner))::tsquery;
    after_rank double precision := (request -> 'after' ->> 'rank')::double precision;
    after_conversation text := request -> 'after' ->> 'conversation_id';
    after_sequence bigint := (request -> 'after' ->> 'sequence')::bigint;
    answer jsonb;
BEGIN
    IF numnode(asked) = 0 THEN
        RETURN jsonb_build_object('items', '[]'::jsonb, 'more', false);
    END IF;
    SELECT jsonb_build_object(
        'more', count(*) > wanted,
        'items', coalesce(jsonb_agg(jsonb_build_object(
            'conversation_id', conversation_id, 'sequence', sequence, 'message_id', message_id, 'rank', rank,
            'create_time', create_time,
            -- Escaped first: what is marked afterwards are the only tags. Endless words are cut, they fill a screen.
            'snippet', coalesce(goose.marked_signs(content, runs), ts_headline('goose.words',
                goose.escape_html(regexp_replace(content, '(\S{80})\S+', '\1…', 'g')), asked,
                'StartSel=<b>, StopSel=</b>, MaxFragments=2, MaxWords=30, MinWords=10, ShortWord=0, FragmentDelimiter=" … "'))
            ) ORDER BY n) FILTER (WHERE n <= wanted), '[]'))
    INTO answer
    FROM (
        SELECT r.*, row_number() OVER (ORDER BY rank DESC, conversation_id, sequence DESC) AS n
        FROM (
            SELECT m.conversation_id, m.sequence, m.message_id, m.create_time, m.content,
                   ts_rank(m.words, asked, 1)::double precision AS rank
            FROM goose.message_search m
            WHERE m.words @@ owned AND m.user_id = owner
              AND (request ->> 'conversation_id' IS NULL OR m.conversation_id = request ->> 'conversation_id')
        ) r
        WHERE after_rank IS NULL OR rank < after_rank
           OR (rank = after_rank AND (conversation_id > after_conversation
               OR (conversation_id = after_conversation AND sequence < after_sequence)))
        ORDER BY rank DESC, conversation_id, sequence DESC
        LIMIT wanted + 1
    ) found;
    RETURN answer;
END
$$;
-- What was indexed before.
UPDATE goose.message_search SET words = goose.message_words(user_id, content)
WHERE content ~ goose.sign_pattern();
