"""The search methods by name."""

from plywise.agent.search.greedy import Greedy
from plywise.agent.search.guided import Guided
from plywise.agent.search.knapsack import Knapsack
from plywise.agent.search.random_search import RandomSearch
from plywise.agent.search.search_method import SearchMethod
from plywise.agent.search.uniform import Uniform

SEARCH_METHODS: dict[str, SearchMethod] = {
    method.name: method for method in (RandomSearch(), Uniform(), Greedy(), Knapsack(), Guided())
}
"""Methods that need no training; `unknown_name` of the error tree words the error for a name that is not here."""
